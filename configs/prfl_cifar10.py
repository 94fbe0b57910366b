"""PR-FL and the baselines that its author ran, on non-IID CIFAR-10 and the author's links.

Ten clients (Dirichlet 1.0) have links of 20 to 1.5 MiB/s, scaled to the model so that the whole
model takes as long as the author's VGG-11, 37 MiB.

Command:   python -m launch.compare --config=configs/prfl_cifar10.py --workdir=runs/prfl_cifar10
Data:      CIFAR-10 in FEDJAX_HET_DATA/cifar10 (the binary version)
"""

from ml_collections import ConfigDict

# The number of weights over the 9,747,136 of the author's model.
SCALE = 1_070_432 / 9_747_136
MIB = 2**20


def get_config() -> ConfigDict:
    links = {
        "server_up_bytes_per_s": 10 * MIB * SCALE,
        "server_down_bytes_per_s": 50 * MIB * SCALE,
    }
    density = {"interval": 40}
    return ConfigDict(
        {
            "data": {
                "source": "cifar10",
                "num_clients": 10,
                "partition": {"name": "dirichlet", "alpha": 1.0},
                "validation_fraction": 0.04,
            },
            "model": {"name": "cifar_cnn"},
            "fleet": {"name": "prfl", "scale": SCALE, "flops_per_s": 2e10},
            "algorithm": {
                "name": "prfl",
                "learning_rate": 0.1,
                "batch_size": 20,
                "local_steps": 5,
                "density": density,
                "recovery": {"patience": 5},
                "links": links,
            },
            "run": {"rounds": 20000, "max_virtual_s": 20000.0, "eval_every_s": 400.0},
            "compare": {
                "methods": {
                    "PR-FL": {},
                    "nested masks, synchronous": {
                        "name": "nested_mask_sync",
                        "density": density,
                        "links": links,
                    },
                    "FedFix of the author": {"name": "prfl_fedfix", "links": links},
                    "FedAsyn of the author": {"name": "prfl_fedasyn", "links": links},
                },
                "seeds": (0,),
                "targets": (0.5, 0.6),
                "reference": "FedAsyn of the author",
            },
        }
    )
