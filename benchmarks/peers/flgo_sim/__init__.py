"""FLGo: its FedAvg on a task whose batches are given."""
