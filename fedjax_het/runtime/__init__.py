"""XLA, processors and processes; independent of federated learning."""
