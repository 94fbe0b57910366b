"""ADEL-FL, SALF, drop-stragglers and wait-for-all at equal total time: MNIST, CNN of 8 layers.

20 clients, IID; layers are tensors, as in the authors' code; 200 virtual seconds for 50 rounds. The
fleet is the paper's with powers up to 256 in place of 8192 samples x layers per second. Batches
have 10 to 160 samples, so that a laptop can run it.

The step size of each method is its best of a sweep on seeds 100 and 101.

Command:   fedjax-het compare --config=configs/adel_mnist_cnn2.py --workdir=runs/adel_mnist_cnn2
Plan only: fedjax-het plan --config=configs/adel_mnist_cnn2.py --out=runs/plan
Data:      MNIST in FEDJAX_HET_DATA/mnist (the usual four IDX files)
Results:   docs/results/adel_fl.md
"""

from ml_collections import ConfigDict

BUDGET = {"rounds": 50, "total_s": 200.0}
# Tensors as layers; at scale 1 a device of mean power takes 1 s for a layer of 137 samples.
SHARED = {"granularity": "tensor", "learning_rate": 0.5, "batch_size": 137, "decay_rounds": 25.0}


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
            "model": {"name": "adel_cnn2"},
            "fleet": {
                "name": "adel",
                "stages": 8,
                # 723,000 FLOPs per sample in 8 layers: powers are in samples x layers per second.
                "flops_per_sample_layer": 90375.0,
                "max_power": 256.0,
                "seed": 0,
            },
            "algorithm": {"name": "adel", **planned},
            "run": {
                "rounds": 50,
                "max_virtual_s": 200.0,
                "eval_every_s": 10.0,
                # One program, because the network is so small that routes cost more than they save.
                "execution": "masked",
                "chunk": 1,
            },
            "compare": {
                "methods": {
                    "ADEL-FL": {},
                    "SALF": {"name": "salf", **planned, "learning_rate": 0.25},
                    "Drop": {"name": "adel_drop", **planned},
                    "Wait": {
                        "name": "adel_wait",
                        **SHARED,
                        "learning_rate": 1.0,
                        "decay_rounds": 1.0,
                    },
                    "ADEL-FL, zero-fill": {"aggregator": "zero_fill", "learning_rate": 1.0},
                    # Added after the first run, in which one of five seeds diverged at 0.5.
                    "ADEL-FL, half the step": {"learning_rate": 0.25},
                    "ADEL-FL, zero-fill, half the step": {
                        "aggregator": "zero_fill",
                        "learning_rate": 0.5,
                    },
                },
                "seeds": (0, 1, 2, 3, 4),
                "targets": (0.8, 0.9),
            },
        }
    )
