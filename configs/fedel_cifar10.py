"""FedEL against FedAvg and ElasticTrainer on CIFAR-10 with a narrow VGG11.

20 clients with label skew (Dirichlet 0.1) and four device types, which take 1 to 4 times as long as
the fastest; 10 clients per round, 5 local steps of 16. Reduced from the paper: VGG11 with an eighth
of the channels in place of VGG16, 20 clients in place of 100, 60 samples per client in place of
all.

Command:   python -m launch.compare --config=configs/fedel_cifar10.py --workdir=runs/fedel_cifar10
Data:      CIFAR-10 in FEDJAX_HET_DATA/cifar10 (the binary version)
Results:   docs/results/fedel.md (seed 0): 20 % 2.7 times sooner than FedAvg; 4 minutes a method.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "cifar10",
                "num_clients": 20,
                "partition": {"name": "dirichlet", "alpha": 0.1, "min_size": 20},
                "per_client_cap": 60,
                "seed": 0,
            },
            "model": {"name": "vgg11", "width": 0.125, "exits": True},
            "fleet": {"name": "fedel", "assignment": "cyclic"},
            "algorithm": {
                "name": "fedel",
                # A hundredth of a step: at this rate a whole one overshoots (docs/methods).
                "probe": {"step": 0.01},
                "learning_rate": 0.05,
                "batch_size": 16,
                "local_steps": 5,
                "clients_per_round": 10,
                "extensions": {"starts_per_exit": 1},
            },
            "run": {"rounds": 200, "max_virtual_s": 24.0, "eval_every": 10},
            "compare": {
                "methods": {
                    "FedAvg": {"name": "fedavg", "weighting": "uniform"},
                    "ElasticTrainer": {"variant": "elastic_only"},
                    "FedEL": {},
                },
                "seeds": (0, 1, 2),
                "targets": (0.2, 0.3),
            },
        }
    )
