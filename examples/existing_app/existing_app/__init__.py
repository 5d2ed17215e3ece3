"""A Flower app that was written for FedAvg, now gossiping."""
