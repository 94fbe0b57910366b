"""The rows of a group of clients, what the clients of a round share, and what they report."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.contract.algorithm import ClientResult, Variables


class Rows(NamedTuple):
    """The clients of a group, one row each, padded to length b.

    The valid rows come first on every device.

    Attributes:
      valid: whether a row is a client and not padding, bool[b].
      client, steps, batch, weight: columns of the plan, int32[b]; the weight is float32[b].
      exit: block after which the loss is taken, int32[b].
      width: level of the planned route, int32[b].
      row: rows of `Plan.rows`, a pytree with leading axis b.
      staleness: server steps since the model from which the client starts was made, int32[b].
      place: number of the task among those of its merge, int32[b].
      version: index of the client's start among stacked starts, int32[b]; None if there is one.
      slot: slot of the result, int32[b]; None if results do not wait.
    """

    valid: Any
    client: Any
    steps: Any
    batch: Any
    weight: Any
    exit: Any
    width: Any
    row: Any
    staleness: Any
    place: Any
    version: Any = None
    slot: Any = None


class Round(NamedTuple):
    """The values that all clients of a round share.

    Attributes:
      key: typed PRNG key of the round.
      learning_rate_scale: factor on the local updates, float32.
      shared: value of `Plan.shared`.
    """

    key: Any
    learning_rate_scale: Any
    shared: Any


class Outputs(NamedTuple):
    """The values that are reported of every client, leading axis b.

    Attributes:
      loss: mean training loss, float32.
      square_loss: mean squared loss of the mini-batches of the first epoch, float32.
      samples: number of training samples processed, int32.
      finite: whether the update is finite, bool.
      info: values of `ClientResult.info`.
    """

    loss: Any
    square_loss: Any
    samples: Any
    finite: Any
    info: Any = None


def outputs_of(result: ClientResult, finite: jax.Array) -> Outputs:
    """The values that are reported of stacked results; `finite` is bool[c]."""
    square = jnp.square(result.loss) if result.square_loss is None else result.square_loss
    return Outputs(result.loss, square, result.samples, finite, result.info)


def origin(start: Variables, common: Round, rows: Rows) -> tuple[Variables, Round]:
    """The model and the round of each row; not stacked if all rows have the same."""
    if rows.version is None:
        return start, common
    return jax.tree.map(lambda a: a[rows.version], (start, common))
