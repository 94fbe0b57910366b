"""Your own file: FedAvg against FedPMT on a table, images, tokens or arrays with their clients.

`--config=configs/own_data.py:FORMAT` reads one of the small examples in tests/inputs, and options
of the command line name your file and its columns in their place (docs/data.md has a command for
every format). Without a format it is the table `hospitals.csv`: 400 patients of four hospitals, a
network of 3 layers, device speeds 0.35, 0.73 and 1, of which the slowest afford 1 layer of FedPMT.

Measured on 2 CPU cores (JAX 0.10.2; 2 seeds): 70 % after 0.32 virtual seconds with FedAvg and 0.21
with FedPMT (1.5x), and after 40 rounds 77.1 ± 1.2 % and 76.3 ± 1.2 %. A minute for all four runs.

Command:   fedjax-het compare --config=configs/own_data.py:csv --workdir=runs/own
Data:      tests/inputs, or --config.data.path=mine.csv --config.data.label=... and so on
"""

from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

INPUTS = Path(__file__).resolve().parents[1] / "tests" / "inputs"


def _columns(
    file: str, label: str, client: str | None = None, split: str | None = None, **others: object
) -> dict:
    """The options of a table; a placeholder is None until the command line gives a value."""
    return {
        "path": str(INPUTS / file),
        "label": label,
        "client": client or placeholder(str),
        "split": split or placeholder(str),
        "ignore": (),
        "test_fraction": placeholder(float),
        **others,
    }


# What is read, by format; and what differs for it in the rest of the configuration.
DATA = {
    "csv": _columns("hospitals.csv", "outcome", "hospital", split="split", ignore=("days",)),
    "days": _columns("hospitals.csv", "days", "hospital", split="split", ignore=("outcome",)),
    "jsonl": _columns("messages.jsonl", "labels", "user", tokens="bag"),
    "parquet": _columns("digits_by_writer.parquet", "label", "writer_id"),
    "hub": _columns("my_data_set", "label"),
    "npy": {"path": "folder"},
    "npz": {"path": "arrays.npz", "inputs": "x", "label": "y", "client": placeholder(str)},
    "leaf": {"path": str(INPUTS / "leaf"), "shape": (8, 8, 1)},
    "tff_h5": {
        "train": str(INPUTS / "fed_digits_train.h5"),
        "test": str(INPUTS / "fed_digits_test.h5"),
    },
    "text_matrix": {"path": str(INPUTS / "har")},
    "image_folder": {"path": "images", "size": (32, 32)},
    "mapping": {"path": str(INPUTS / "mapping.csv"), "images": "images", "size": (32, 32)},
}
OBJECTIVES = {
    "days": {"name": "regression", "loss": "huber", "metrics": ("mae", "r2")},
    "jsonl": {"name": "multilabel"},
}
TARGETS = {"days": (12.0, 8.0), "jsonl": (0.3,)}


def get_config(kind: str = "csv") -> ConfigDict:
    data = {"source": "csv" if kind == "days" else kind, "seed": 0, **DATA[kind]}
    config = ConfigDict(
        {
            "data": data,
            "model": {"name": "mlp", "hidden": (32, 32)},
            "fleet": {
                "name": "speed_groups",
                "relative_speeds": (0.35, 0.73, 1.0),
                "base_flops_per_s": 1e7,
            },
            "algorithm": {"name": "fedavg", "learning_rate": 0.1, "batch_size": 16},
            "run": {"rounds": 40, "eval_every": 2, "seed": 0, "client_eval": "last"},
            "compare": {
                "methods": {"FedAvg": {}, "FedPMT": {"name": "fedpmt"}},
                "seeds": (0, 1),
                "targets": TARGETS.get(kind, (0.7, 0.75)),
            },
        }
    )
    if kind == "npy":
        config.run.stream = True
    if kind in OBJECTIVES:
        config.objective = OBJECTIVES[kind]
    return config
