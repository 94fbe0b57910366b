"""Several labels a sample: functions of yeast genes, 24 clients, three device speeds.

1,934 training genes of 103 columns, dealt at random in unequal numbers (29 to 146 a client), of
which 14 labels may hold; a network of 3 layers and 11,726 parameters. Devices of speed 0.45, 0.7
and 1 take 0.50, 0.32 and 0.23 s for the 5 steps of a round; under FedPMT they train 1, 2 and 3
layers. FedProx closes a round after 0.25 s and keeps the steps made by then. The target metric is
the area under the ROC curve, because the F1 of the untrained network (0.28) is above that of the
first 15 to 50 rounds. The step size 0.3 is the best of 0.1, 0.3 and 1 for each method on seed 10.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds): 65 % after
21.7 ± 5.2 virtual seconds with FedAvg, 16.7 ± 4.0 with FedProx and 10.1 ± 2.0 with FedPMT (2.1x);
after 100 s 69.7 ± 1.3, 69.6 ± 0.7 and 68.2 ± 1.1 % (best 69.0): the lead is one of time alone.
One logistic regression a label on all rows has 69.1 %, scikit-learn's MLP 69.3 ± 0.8 %. 1.3 minutes
for all nine runs.

Command:   python -m launch.compare --config=configs/yeast.py --workdir=runs/yeast
Data:      yeast.csv.gz in FEDJAX_HET_DATA, from the package river (river/datasets)
Results:   docs/results/objectives.md
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "yeast",
                "num_clients": 24,
                "partition": {"name": "quantity_skew", "sigma": 0.5, "min_size": 20},
                "seed": 0,
            },
            "objective": {
                "name": "multilabel",
                "metrics": ("macro_f1", "label_accuracy", "auroc"),
            },
            "model": {"name": "mlp", "hidden": (64, 64)},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.45, 0.7, 1.0),
                "base_flops_per_s": 2e7,
            },
            "algorithm": {
                "name": "fedavg",
                "learning_rate": 0.3,
                "batch_size": 16,
                "local_steps": 5,
            },
            "run": {
                "rounds": 500,
                "max_virtual_s": 100.0,
                "eval_every": 5,
                "target_metric": "auroc",
            },
            "compare": {
                "methods": {
                    "FedAvg": {},
                    "FedPMT": {"name": "fedpmt"},
                    "FedProx": {"name": "fedprox", "mu": 0.01, "deadline_s": 0.25},
                },
                "seeds": (0, 1, 2),
                "targets": (0.6, 0.65, 0.68),
                "reference": "FedAvg",
            },
        }
    )
