"""The app of this folder, deployed on this machine: see `examples.serverless.__main__`."""
