"""DTFL against FedYogi, FedAvg, FedGKT and SplitFed on CIFAR-10 with a small bottleneck ResNet.

10 clients with label skew (Dirichlet 0.5) and DTFL's five device profiles, all in every round, with
one local epoch of AMSGrad. Reduced from the paper: one unit per group at half the width (20 layers,
the same eight modules md1..md8) in place of ResNet-56, 100 samples per client in place of 5,000,
batches of 20 in place of 100. A batch of 100 takes the reference machine 0.16 s. The ratio of
transfer time to compute time is that of ResNet-56 (half the width, hence half the rates).

Command:   python -m launch.compare --config=configs/dtfl_cifar10.py --workdir=runs/dtfl_cifar10
Data:      CIFAR-10 in FEDJAX_HET_DATA/cifar10 (the binary version)
"""

from ml_collections import ConfigDict

# The speed for 100 samples of 50,830,848 FLOPs in 0.16 s.
REFERENCE_FLOPS_PER_S = 3.176928e10


def get_config() -> ConfigDict:
    server = {"server_flops_per_s": REFERENCE_FLOPS_PER_S}
    return ConfigDict(
        {
            "data": {
                "source": "cifar10",
                "num_clients": 10,
                "partition": {"name": "dirichlet", "alpha": 0.5, "min_size": 20},
                "per_client_cap": 100,
                "seed": 0,
            },
            "model": {
                "name": "resnet",
                "units_per_group": 1,
                "bottleneck": True,
                "norm": "batch",
                "granularity": "module",
                "width": 8,
                "exits": True,
            },
            "fleet": {
                "name": "dtfl",
                "base_flops_per_s": REFERENCE_FLOPS_PER_S,
                "link_scale": 0.5,
            },
            "algorithm": {
                "name": "dtfl",
                "learning_rate": 1e-3,
                "batch_size": 20,
                "client_optimizer": "amsgrad",
                "weight_decay": 5e-4,
                **server,
            },
            # One program for all tiers, because on a CPU compiling a route costs more than it saves
            # here.
            "run": {"rounds": 60, "eval_every": 5, "execution": "masked"},
            "compare": {
                "methods": {
                    "DTFL": {},
                    "FedAvg": {"name": "fedavg"},
                    "FedYogi": {"name": "fedyogi", "server_learning_rate": 1e-2},
                    "FedGKT": {"name": "fedgkt", **server},
                    "SplitFed": {"name": "splitfed", **server},
                },
                "seeds": (0,),
                "targets": (0.3, 0.35, 0.4),
                "reference": "DTFL",
            },
        }
    )
