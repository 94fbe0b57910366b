"""The model that another one was made of by holding some of its values constant."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_het.common.errors import require
from fedjax_het.contract.algorithm import Variables


class Origin(NamedTuple):
    """Where a model with constant values comes from, see `frozen.freeze` and `low_rank.lora`.

    Attributes:
      model: the complete `BlockModel`, all of whose parameters are variables.
      complete: function from variables of the smaller model to variables of the complete one, which
        computes the same outputs.
      digest: SHA-256 of the constants and of the values at the start.
    """

    model: Any
    complete: Callable[[Variables], Variables]
    digest: str


def require_complete(model: Any, what: str) -> None:
    """Raises `InputError` if a `BlockModel` has constant values already.

    Args:
      model: model to change.
      what: change that must come before `freeze` and `lora`, e.g. `"give it exit heads"`.
    """
    require(
        model.origin is None,
        f"model {model.name!r}",
        "has constant values already",
        f"{what} before freeze or lora (its complete model is model.origin.model)",
    )
