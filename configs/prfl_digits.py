"""PR-FL and the baselines that its author ran, on non-IID digits and the author's links.

Ten clients (Dirichlet 1.0) have links of 20 to 1.5 MiB/s, scaled to the model so that the whole
model takes as long as the author's VGG-11, 37 MiB.

Command:   python -m launch.compare --config=configs/prfl_digits.py --workdir=runs/prfl_digits
"""

from ml_collections import ConfigDict

# 64 x 64 + 64 x 64 + 64 x 10 weights over the 9,747,136 of the author's model.
SCALE = 8_832 / 9_747_136
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
                "source": "digits",
                "num_clients": 10,
                "partition": {"name": "dirichlet", "alpha": 1.0},
                "validation_fraction": 0.04,
            },
            "model": {"name": "mlp", "hidden": (64, 64)},
            "fleet": {"name": "prfl", "scale": SCALE, "flops_per_s": 4e8},
            "algorithm": {
                "name": "prfl",
                "learning_rate": 0.1,
                "batch_size": 20,
                "local_steps": 5,
                "density": density,
                "recovery": {"patience": 5},
                "links": links,
            },
            "run": {"rounds": 2000, "max_virtual_s": 3000.0, "eval_every_s": 50.0},
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
                "targets": (0.85, 0.9),
                "reference": "FedAsyn of the author",
            },
        }
    )
