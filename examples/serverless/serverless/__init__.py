"""Four boards that learn to read digits, and send their models to each other alone."""
