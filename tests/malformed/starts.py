"""Starts of runs, saved models, and training of a part."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from malformed.case import BASE, Call, Case, problem, ran, trained
from safetensors.numpy import save_file

from fedjax_het import algorithms, load_model, models, simulate
from fedjax_het.contract import Variables
from fedjax_het.models.saving import named


def zeros() -> Variables:
    """Values of the base model."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), problem().model.shapes)


def file(here: Path, **changes: Any) -> str:
    """A file of zeros with other arrays for some names (`blocks_1_Dense.0_bias`), or without."""
    arrays = named(zeros())
    for name, array in changes.items():
        arrays[name.replace("_", ".").replace("Dense.", "Dense_")] = array
    save_file({n: a for n, a in arrays.items() if a is not None}, here / "s.safetensors")
    return str(here / "s.safetensors")


def from_file(**changes: Any) -> Call:
    return lambda here: ran(initial=file(here, **changes))(here)


def tuned(**options: Any) -> Call:
    """Trains with options of the section `model` beside a start of zeros."""
    return lambda here: trained(model={**BASE["model"], "start": file(here), **options})(here)


def garbage(here: Path) -> None:
    (here / "s.safetensors").write_bytes(b"5" * 50)
    ran(initial=here / "s.safetensors")(here)


def from_nothing(here: Path) -> None:
    nothing = Variables({"blocks": ({}, {}), "exits": ()}, {})
    fedavg = algorithms.fedavg(problem(), learning_rate=0.1)
    simulate(fedavg, problem(), rounds=1, initial=nothing)


CASES: list[Case] = [
    (ran(initial="gone"), "initial = 'gone' | holds no saved model | work directory of a run that"),
    (ran(initial=5), "'initial' = 5 | must be text or a Path or a Variables or None | initial"),
    (
        lambda here: ran(initial=str(here))(here),
        "initial = '/ | model.safetensors does not exist | has reached its end",
    ),
    (garbage, "s.safetensors' | not a readable safetensors file | save the model again"),
    (
        from_file(blocks_1_Dense_0_bias=None),
        "s.safetensors' | missing (blocks.1.Dense_0.bias) | the same blocks and heads",
    ),
    (
        from_file(blocks_1_Dense_0_bias=np.zeros(9)),
        "s.safetensors' | differently shaped (blocks.1.Dense_0.bias [9] for [10]) | the same",
    ),
    (
        from_nothing,
        "initial | missing (blocks.0.Dense_0.bias, blocks.0.Dense_0.kernel, | the same blocks",
    ),
    (lambda here: load_model(here), "place = '/ | holds no saved model | name a .safetensors file"),
    (
        lambda here: load_model(file(here)),
        "s.safetensors' | not say how its model was made | simulate(initial=...)",
    ),
    (trained(model__start="gone"), "start = 'gone' | holds no saved model | name a .safetensors"),
    (trained(model__start=3), "start = 3 | must be a path | name a work directory"),
    (
        trained(model__trainable="bias"),
        "trainable = 'bias', lora = None without start | need the values | set start",
    ),
    (tuned(hidden=(9,)), "start = '/ | blocks.0.Dense_0.bias [8] for [9] | options of the model"),
    (tuned(trainable="("), "trainable = '(' | must be a regular expression | 'bias|out'"),
    (tuned(trainable="kernal"), "trainable = 'kernal' | matches no parameter | trainable='.*'"),
    (tuned(lora=8), "lora = 8 | must be a mapping | lora = {'rank': 8}"),
    (tuned(lora={"rnak": 8}), "option of lora 'rnak' | must be one of alpha, rank | 'rank'?"),
    (tuned(lora={"rank": "8"}), "'rank' = '8' | must be a whole number | rank = 8"),
    (tuned(lora={"rank": 9}), "rank = 9 | exceeds the kernel [64, 8] of layer | smaller rank"),
    (tuned(lora={"rank": 0}), "rank = 0 | at least 1 | use 4 or 8"),
    (
        tuned(lora={"rank": 2, "targets": "conv"}),
        "targets = 'conv' | there are blocks.0.Dense_0, blocks.1.Dense_0 | choose some",
    ),
    (
        lambda here: models.freeze(problem().model, zeros(), lambda name: False),
        "trainable = <function | matches no parameter | '.*'",
    ),
]
