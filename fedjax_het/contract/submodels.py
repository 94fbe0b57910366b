"""Sub-models: the models that clients of each kind hold, to evaluate beside the global model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_het.common.types import PyTree

# The kind of a client that holds the global model itself.
GLOBAL = "global"


class SubModels(NamedTuple):
    """The models of a method's kinds of clients.

    Every evaluation measures each of them, and records `<metric>[<name>]` of the test set and
    `val_<metric>[<name>]` of the validation set, if there is one.

    Attributes:
      models: function `(state, variables) -> {name: (model, variables)}`, on the host, with the
        `models.BlockModel` and the `Variables` of each kind ("width_0.5", "depth_2", "ensemble").
        Names and models must be the same in every call, the models as objects, because a program is
        compiled for each model once.
      of_client: name of the kind of every client, of length n: one of `models`, or `GLOBAL`. With
        it, `local_<metric>` is recorded: the mean over the clients of the target metric of their
        kind on their own test samples. None records none.
    """

    models: Callable[[PyTree, Any], Mapping[str, tuple[Any, Any]]]
    of_client: tuple[str, ...] | None = None
