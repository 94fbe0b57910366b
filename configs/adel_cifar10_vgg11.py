"""ADEL-FL, SALF, drop-stragglers and wait-for-all on CIFAR-10 with VGG-11, at full size.

20 clients, IID; VGG-11 with batch normalisation and the authors' 11 layers (one per convolution,
the classifier, and two virtual layers next to it); 2400 virtual seconds for 300 rounds. Powers up
to 512 samples x layers per second: batches of about 275 samples for a device of mean power.

Command:   fedjax-het compare --config=configs/adel_cifar10_vgg11.py --workdir=runs/adel_vgg11
Hardware:  meant for an accelerator (about 5 TFLOP a round); not run yet. On two CPU cores use
           configs/adel_cifar10_cnn.py.
Data:      CIFAR-10 in FEDJAX_HET_DATA/cifar10 (the binary version)
"""

from ml_collections import ConfigDict

BUDGET = {"rounds": 300, "total_s": 2400.0}
SHARED = {"virtual_layers": 2, "learning_rate": 0.3, "batch_size": 275, "max_batch": 512}


def get_config() -> ConfigDict:
    # The authors' 1 / (1 + t) would end at a step of 0.001; here the step is halved after 100
    # rounds.
    schedule = {"schedule": "inverse", "decay_rounds": 100.0}
    planned = {**BUDGET, **SHARED, **schedule}
    return ConfigDict(
        {
            "data": {
                "source": "cifar10",
                "num_clients": 20,
                "partition": {"name": "iid"},
                "augment": "crop_flip",
                "seed": 0,
            },
            "model": {"name": "vgg11", "norm": "batch"},
            "fleet": {
                "name": "adel",
                "stages": 11,
                # 913,078,272 FLOPs per sample, 11 layers; powers are samples x layers per second.
                "flops_per_sample_layer": 83007115.6,
                "max_power": 512.0,
                "seed": 0,
            },
            "algorithm": {"name": "adel", **planned},
            "run": {"rounds": 300, "max_virtual_s": 2400.0, "eval_every_s": 40.0},
            "compare": {
                "methods": {
                    "ADEL-FL": {},
                    "SALF": {"name": "salf", **planned},
                    "Drop": {"name": "adel_drop", **planned},
                    "Wait": {"name": "adel_wait", **SHARED, **schedule},
                    "ADEL-FL, zero-fill": {"aggregator": "zero_fill"},
                },
                "seeds": (0, 1, 2),
                "targets": (0.6, 0.7),
            },
        }
    )
