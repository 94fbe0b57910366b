"""The character LSTM on Shakespeare's roles: FedAvg with two client optimisers, and FedPMT.

The 30 largest roles with 48 training windows of 80 symbols each, the network of McMahan et al. and
LEAF reduced to two LSTMs of 128 (212,551 parameters); 8 roles a round, one pass in batches of 8.
Devices of relative speeds 0.35, 0.68 and 1, which in FedPMT afford the output layer, the output and
the second LSTM, and everything; uplinks of 2 MB/s. All methods run for 92 virtual seconds. Step
sizes are the best of three on seed 10: Adam 0.003, 0.01, 0.03 (18 rounds), SGD 1, 2, 4 (24 rounds).

Command:   python -m launch.compare --config=configs/shakespeare_lstm.py \
               --workdir=runs/shakespeare_lstm
Data:      shakespeare_roles.jsonl.gz in FEDJAX_HET_DATA
Results:   docs/results/objectives.md: 40 % of the symbols 1.50 times sooner with FedPMT than with
           FedAvg; SGD stays on the plateau of the symbols' frequencies; 2 shared CPU cores, 14
           minutes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "shakespeare",
                "window": 80,
                "test_fraction": 0.1,
                "num_clients": 30,
                "per_client_cap": 48,
                "seed": 0,
            },
            "model": {"name": "char_lstm", "units": 128},
            "objective": {"name": "next_token", "metrics": ("accuracy", "perplexity")},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.35, 0.68, 1.0),
                "downlink_bytes_per_s": 8e6,
                "uplink_bytes_per_s": 2e6,
            },
            "algorithm": {
                "name": "fedavg",
                "client_optimizer": "adam",
                "learning_rate": 0.03,
                "clip_norm": 1.0,
                "batch_size": 8,
                "clients_per_round": 8,
            },
            "run": {"rounds": 96, "max_virtual_s": 92.0, "eval_every": 6},
            "compare": {
                "methods": {
                    "FedAvg": {},
                    "FedAvg, SGD": {"client_optimizer": "sgd", "learning_rate": 4.0},
                    "FedPMT": {"name": "fedpmt", "learning_rate": 0.01},
                },
                "seeds": (0, 1, 2),
                "targets": (0.3, 0.4),
                "reference": "FedAvg",
            },
        }
    )
