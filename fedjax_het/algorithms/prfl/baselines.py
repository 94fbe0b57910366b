"""The baselines of PR-FL as its author ran them, named apart from the published methods."""

import functools
from typing import Any

from fedjax_het.algorithms.prfl.prfl import prfl
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import UniformTraining

_FULL: dict[str, Any] = {
    "densities": (1.0,),
    "lowest": 1.0,
    "adapt": False,
    "recover": False,
    "buffered": False,
    "live": False,
    "distribution": "distinct",
}

# FedAsync as the author ran it: the whole model, one arrival per window, and the model moves by the
# client's share of the staleness weights of all clients (about 1/n) instead of alpha = 0.6.
prfl_fedasyn = functools.partial(prfl, pace="single", **_FULL)

# FedFix as the author ran it: windows, the same share instead of unbiased weights.
prfl_fedfix = functools.partial(prfl, pace="window", **_FULL)

# What the author calls HeteroFL: synchronous, nested masks at fixed densities; no width slicing, no
# scaler, no masked cross-entropy.
nested_mask_sync = functools.partial(
    prfl, pace="sync", adapt=False, recover=False, distribution="distinct"
)

for _name, _factory in (
    ("prfl_fedasyn", prfl_fedasyn),
    ("prfl_fedfix", prfl_fedfix),
    ("nested_mask_sync", nested_mask_sync),
):
    _factory.__name__ = _name  # type: ignore[attr-defined]
    register(options=UniformTraining)(_factory)
