"""A detector -> files for other runtimes, each measured against the network that it was made from."""
