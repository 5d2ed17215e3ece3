"""One module for each claim: ``python -m benchmarks.NAME [--quick]``."""
