"""Objectives: losses and metrics on the output of a model's last block."""

from collections.abc import Callable
from typing import Any

from fedjax_het.common.errors import require_known
from fedjax_het.common.options import check_options
from fedjax_het.objectives.classification import classification, next_token, segmentation
from fedjax_het.objectives.metric import Metric
from fedjax_het.objectives.multilabel import multilabel
from fedjax_het.objectives.objective import Objective
from fedjax_het.objectives.regression import regression

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    f.__name__: f for f in (classification, multilabel, next_token, regression, segmentation)
}


def build(name: str, **options: Any) -> Objective:
    """Makes an objective by name, for configuration files.

    Args:
      name: name of the objective, a key of `OBJECTIVES`.
      **options: keyword arguments of the factory.

    Raises:
      InputError: for unknown names and options.
    """
    require_known(name, OBJECTIVES, "objective")
    check_options(options, f"option of objective {name!r}", OBJECTIVES[name])
    return OBJECTIVES[name](**options)


__all__ = [
    "OBJECTIVES",
    "Metric",
    "Objective",
    "build",
    "classification",
    "multilabel",
    "next_token",
    "regression",
    "segmentation",
]
