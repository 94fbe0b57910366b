"""Paces of the server on non-IID digits: synchronous rounds, arrivals, buffers, windows, tiers.

24 clients with label skew (Dirichlet 0.5) have devices whose speeds spread by a factor of ten; 12
are at work at a time.

Command:   python -m launch.compare --config=configs/async_digits.py --workdir=runs/async_digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "digits",
                "num_clients": 24,
                "partition": {"name": "dirichlet", "alpha": 0.5},
            },
            "model": {"name": "mlp", "hidden": (64,)},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.1, 0.2, 0.5, 1.0),
                "base_flops_per_s": 1e7,
            },
            "algorithm": {
                "name": "fedbuff",
                "buffer_size": 4,
                "learning_rate": 0.1,
                "batch_size": 16,
                "clients_per_round": 12,
            },
            "run": {"rounds": 600, "max_virtual_s": 12.0, "eval_every_s": 0.25},
            "compare": {
                "methods": {
                    "FedAvg": {"name": "fedavg"},
                    "FedAsync": {"name": "fedasync", "alpha": 0.3},
                    "FedBuff": {},
                    "FedFix": {"name": "fedfix", "interval_s": 0.1},
                    "FedAT": {"name": "fedat", "tiers": 4},
                },
                "seeds": (0, 1, 2),
                "targets": (0.85, 0.9),
                "reference": "FedAvg",
            },
        }
    )
