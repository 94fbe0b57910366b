"""ADEL-FL, SALF, drop-stragglers and wait-for-all on CIFAR-10, at a size for two CPU cores.

10 clients, IID; a network of two convolutions and two fully connected layers, every weight and
every bias a layer (8); 450 virtual seconds for 100 rounds; powers up to 64 samples x layers per
second, batches of about 37 samples for a device of mean power.

The step size of each method is its best of a sweep on seed 100.

Command:   fedjax-het compare --config=configs/adel_cifar10_cnn.py --workdir=runs/adel_cifar10_cnn
Data:      CIFAR-10 in FEDJAX_HET_DATA/cifar10 (the binary version)
Results:   docs/results/adel_fl.md
"""

from ml_collections import ConfigDict

BUDGET = {"rounds": 100, "total_s": 450.0}
SHARED = {"granularity": "tensor", "learning_rate": 0.1, "batch_size": 37}


def get_config() -> ConfigDict:
    schedule = {"schedule": "inverse", "decay_rounds": 50.0}
    planned = {**BUDGET, **SHARED, **schedule}
    return ConfigDict(
        {
            "data": {
                "source": "cifar10",
                "num_clients": 10,
                "partition": {"name": "iid"},
                "seed": 0,
            },
            "model": {"name": "cifar_cnn"},
            "fleet": {
                "name": "adel",
                "stages": 8,
                # 38,157,312 FLOPs per sample, 8 layers; powers are in samples x layers per second.
                "flops_per_sample_layer": 4769664.0,
                "max_power": 64.0,
                "seed": 0,
            },
            "algorithm": {"name": "adel", **planned},
            "run": {"rounds": 100, "max_virtual_s": 450.0, "eval_every_s": 30.0},
            "compare": {
                "methods": {
                    "ADEL-FL": {},
                    "SALF": {"name": "salf", **planned},
                    "Drop": {"name": "adel_drop", **planned, "learning_rate": 0.05},
                    "Wait": {"name": "adel_wait", **SHARED, **schedule, "learning_rate": 0.2},
                    "ADEL-FL, zero-fill": {"aggregator": "zero_fill", "learning_rate": 0.2},
                },
                "seeds": (0, 1, 2),
                "targets": (0.3, 0.4),
            },
        }
    )
