"""The loop over server steps: server, evaluation, records, checkpoints."""
