"""FedPMT against FedAvg on MNIST with the McMahan CNN, until both reach 97 %.

30 clients in three equal speed groups (0.34, 0.71, 1), which afford 1, 3 and 4 of the 4 layers; IID
split; 5 local steps of batch 32; all clients take part in every round.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds), virtual seconds:
95 % after 54.5 ± 6.8 with FedAvg and 18.5 ± 2.3 with FedPMT (2.94x); 97 % after 123 ± 0 and
42.5 ± 1.3 (2.89x), in 36.0 ± 0.0 and 36.7 ± 1.2 rounds. 12 minutes of CPU time for all six runs.

Command:   python -m launch.compare --config=configs/mnist_fedpmt.py --workdir=runs/mnist_fedpmt
Data:      MNIST in FEDJAX_HET_DATA/mnist (the usual four IDX files)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "mnist",
                "num_clients": 30,
                "partition": {"name": "iid"},
                "seed": 0,
            },
            "model": {"name": "leaf_cnn"},
            "fleet": {"name": "speed_groups", "relative_speeds": (0.34, 0.71, 1.0)},
            "algorithm": {
                "name": "fedavg",
                "learning_rate": 0.05,
                "batch_size": 32,
                "local_steps": 5,
            },
            "run": {"rounds": 200, "target": 0.97, "eval_every": 2},
            "compare": {
                "methods": {"FedAvg": {}, "FedPMT": {"name": "fedpmt", "depths": (1, 3, 4)}},
                "seeds": (0, 1, 2),
                "targets": (0.95, 0.97),
            },
        }
    )
