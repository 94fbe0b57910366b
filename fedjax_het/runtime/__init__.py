"""What knows XLA, processors and processes, and nothing of federated learning."""
