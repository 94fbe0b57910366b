"""FedAvg against FedPMT on non-IID digits and three device speeds: the demo.

Command:   make demo   (or: python -m launch.compare --config=configs/digits.py --workdir=runs/demo)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "digits",
                "num_clients": 30,
                "partition": {"name": "dirichlet", "alpha": 0.5, "min_size": 10},
                "seed": 0,
            },
            "model": {"name": "mlp", "hidden": (64, 64, 64)},
            "fleet": {"name": "speed_groups", "relative_speeds": (0.34, 0.71, 1.0)},
            "algorithm": {"name": "fedavg", "learning_rate": 0.1, "batch_size": 16, "epochs": 1},
            "run": {"rounds": 100, "eval_every": 1, "seed": 0},
            "compare": {
                "methods": {"FedAvg": {}, "FedPMT": {"name": "fedpmt"}},
                "seeds": (0, 1, 2),
                "targets": (0.85, 0.9),
            },
        }
    )
