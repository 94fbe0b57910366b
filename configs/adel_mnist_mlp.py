"""ADEL-FL, SALF, drop-stragglers and wait-for-all at equal total time: MNIST, MLP 784-32-16-10.

20 clients, IID; 6 layers (every weight and every bias), 400 virtual seconds for 150 rounds; powers
up to 512 samples x layers per second. The arm "ADEL-FL, physical" has layer times of whole samples
and merges with inverse propensities.

The step size of each method is its best in the sweep below, on seeds 100 and 101.

Command:   fedjax-het compare --config=configs/adel_mnist_mlp.py --workdir=runs/adel_mnist_mlp
Data:      MNIST in FEDJAX_HET_DATA/mnist (the usual four IDX files)
Results:   docs/results/adel_fl.md
"""

from ml_collections import ConfigDict

BUDGET = {"rounds": 150, "total_s": 400.0}
# Tensors as layers; at scale 1 a device of mean power takes 1 s for a layer of 275 samples.
SHARED = {"granularity": "tensor", "learning_rate": 0.1, "batch_size": 275, "decay_rounds": 50.0}


def get_config() -> ConfigDict:
    planned = {**BUDGET, **SHARED}
    return ConfigDict(
        {
            "data": {
                "source": "mnist",
                "num_clients": 20,
                "partition": {"name": "iid"},
                "normalise": (0.5, 0.5),
                "seed": 0,
            },
            "model": {"name": "mlp", "hidden": (32, 16)},
            "fleet": {
                "name": "adel",
                "stages": 6,
                # 104,384 FLOPs per sample in 6 layers: powers are in samples x layers per second.
                "flops_per_sample_layer": 17397.333,
                "max_power": 512.0,
                "seed": 0,
            },
            "algorithm": {"name": "adel", **planned},
            "run": {
                "rounds": 150,
                "max_virtual_s": 400.0,
                "eval_every_s": 10.0,
                # One program, because the network is so small that routes cost more than they save.
                "execution": "masked",
                "chunk": 4,
            },
            "compare": {
                "methods": {
                    "ADEL-FL": {},
                    "SALF": {"name": "salf", **planned},
                    "Drop": {"name": "adel_drop", **planned},
                    "Wait": {
                        "name": "adel_wait",
                        **SHARED,
                        "learning_rate": 0.2,
                        "decay_rounds": 10.0,
                    },
                    "ADEL-FL, zero-fill": {"aggregator": "zero_fill", "learning_rate": 0.2},
                    "SALF, zero-fill": {
                        "name": "salf",
                        "aggregator": "zero_fill",
                        **planned,
                        "learning_rate": 0.4,
                    },
                    "ADEL-FL, physical": {"rates": "physical"},
                },
                "seeds": (0, 1, 2, 3, 4),
                "targets": (0.8, 0.85),
            },
            "sweep": {
                "space": {
                    "algorithm": {"learning_rate": (0.05, 0.1, 0.2, 0.4), "decay_rounds": (50.0,)}
                },
                "seeds": (100, 101),
            },
        }
    )
