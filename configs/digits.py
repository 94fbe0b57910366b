"""The demo: FedAvg against FedPMT on non-IID digits and three device speeds.

30 clients have the 1,437 training digits of scikit-learn (Dirichlet 0.5) and devices of speed 0.35,
0.73 and 1, which afford 1, 3 and 4 of the network's 4 layers. Both methods get the same virtual
time.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds): 95 % after
23.3 ± 6.6 virtual seconds with FedAvg and 10.3 ± 1.1 with FedPMT (2.26x); about a minute of CPU
time for all six runs.

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
            "model": {"name": "cifar_cnn"},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.35, 0.73, 1.0),
                "base_flops_per_s": 5e8,
            },
            "algorithm": {"name": "fedavg", "learning_rate": 0.1, "batch_size": 16},
            "run": {"rounds": 500, "max_virtual_s": 60.0, "eval_every": 2, "seed": 0},
            "compare": {
                "methods": {"FedAvg": {}, "FedPMT": {"name": "fedpmt"}},
                "seeds": (0, 1, 2),
                "targets": (0.9, 0.95),
            },
            "sweep": {
                "space": {"algorithm": {"learning_rate": (0.03, 0.1, 0.3)}},
                "target": 0.9,
                "seeds": (1000,),
            },
        }
    )
