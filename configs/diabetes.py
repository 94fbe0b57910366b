"""Regression on unequal devices: the diabetes table of scikit-learn, 12 clients, four methods.

354 training rows, dealt at random in unequal numbers (12 to 44 a client); a network of 3 layers and
465 parameters. Devices of speed 0.4, 0.7 and 1 take 0.91, 0.52 and 0.36 s for the 4 steps of a
round; under FedPMT they train 1, 2 and 3 layers. FedProx closes a round after 0.4 s and keeps the
steps made by then, Drop after 0.55 s and loses the slow third. The target metric is an error: lower
is better. Step sizes are the best of 0.01, 0.03, 0.1, 0.2 and 0.3 for each method on seed 10.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds): a mean absolute
error of 0.5 (50 points of the disease score) after 3.3 ± 1.1 virtual seconds with FedAvg, 2.4 ± 1.3
with Drop, 3.2 ± 0.4 with FedPMT, 5.6 ± 1.4 with FedProx; after 40 s 0.445 ± 0.016, 0.455 ± 0.006,
0.450 ± 0.002 and 0.446 ± 0.009. A linear regression on all rows at once has 0.456 and an R² of
0.343; FedAvg's is 0.352 ± 0.029. No method is ahead by more than the spread of the seeds.
Half a minute for all twelve runs.

Command:   python -m launch.compare --config=configs/diabetes.py --workdir=runs/diabetes
Data:      inside scikit-learn
Results:   docs/results/objectives.md
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "diabetes",
                "num_clients": 12,
                "partition": {"name": "quantity_skew", "sigma": 0.5, "min_size": 8},
                "seed": 0,
            },
            "objective": {"name": "regression", "loss": "mse", "metrics": ("mae", "rmse", "r2")},
            "model": {"name": "mlp", "hidden": (16, 16)},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.4, 0.7, 1.0),
                "base_flops_per_s": 2e5,
            },
            "algorithm": {
                "name": "fedavg",
                "learning_rate": 0.03,
                "batch_size": 8,
                "local_steps": 4,
            },
            "run": {
                "rounds": 500,
                "max_virtual_s": 40.0,
                "eval_every": 1,
                "target_metric": "mae",
            },
            "compare": {
                "methods": {
                    "FedAvg": {"learning_rate": 0.1},
                    "FedPMT": {"name": "fedpmt"},
                    "FedProx": {"name": "fedprox", "mu": 0.01, "deadline_s": 0.4},
                    "Drop": {"name": "drop_stragglers", "deadline_s": 0.55, "learning_rate": 0.1},
                },
                "seeds": (0, 1, 2),
                "targets": (0.6, 0.5, 0.46),
                "reference": "FedAvg",
            },
        }
    )
