"""Prices of a sub-model: FLOPs, bytes and memory of blocks `first..exit`, from the model itself.

A sub-model is `(first, exit)`: blocks before `first` run forward only, blocks `first..exit` train,
the head after block `exit` gives the loss, and deeper blocks do not run. Its cost per sample is

    sum_{b <= exit} forward_b  +  sum_{first <= b <= exit} weight_grad_b
      +  sum_{first < b <= exit} input_grad_b  +  head_exit

The heads of blocks before `exit` may give further losses (`heads`), each at its price. The forward
pass of the frozen blocks is always paid: a step costs at least its share, about one third.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.flops import BlockPrice, pricing, tree_bytes
from fedjax_het.models.base import BlockModel


@dataclass(frozen=True, eq=False)
class CostTable:
    """Prices of a model's blocks per sample; arrays of length L in the order of the blocks.

    The `exit_` arrays hold the prices of the head after each block. They are zero for the last
    block, whose head is the network's own, and for a model without exits.

    Attributes:
      names: names of the blocks.
      forward_flops: float64, FLOPs of the forward pass.
      weight_grad_flops: float64, FLOPs of the backward pass to the block's own parameters.
      input_grad_flops: float64, additional FLOPs of the gradient of the block's input.
      param_count: int64, number of parameters.
      param_bytes: int64, bytes of the parameters.
      stats_bytes: int64, bytes of the running statistics.
      activation_bytes: int64, bytes of the block's output.
      stored_bytes: int64, bytes that the block keeps of a sample between forward and backward pass.
      exit_forward_flops: float64, `forward_flops` of the head.
      exit_weight_grad_flops: float64, `weight_grad_flops` of the head.
      exit_input_grad_flops: float64, `input_grad_flops` of the head.
      exit_param_count: int64, `param_count` of the head.
      exit_param_bytes: int64, `param_bytes` of the head.
      exit_stored_bytes: int64, `stored_bytes` of the head.
      has_exits: whether a sub-model may end before the last block.
      shared_exit: whether all exits are one head.
      uploads_stats: whether running statistics of trained blocks are sent to the server; they are
        always downloaded with the model.
    """

    names: tuple[str, ...]
    forward_flops: np.ndarray
    weight_grad_flops: np.ndarray
    input_grad_flops: np.ndarray
    param_count: np.ndarray
    param_bytes: np.ndarray
    stats_bytes: np.ndarray
    activation_bytes: np.ndarray
    stored_bytes: np.ndarray
    exit_forward_flops: np.ndarray
    exit_weight_grad_flops: np.ndarray
    exit_input_grad_flops: np.ndarray
    exit_param_count: np.ndarray
    exit_param_bytes: np.ndarray
    exit_stored_bytes: np.ndarray
    has_exits: bool
    shared_exit: bool
    uploads_stats: bool

    def __post_init__(self) -> None:
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                require(
                    value.shape == (len(self.names),) and bool((value >= 0).all()),
                    f"{column.name} = {value}",
                    f"needs {len(self.names)} values >= 0, one per block",
                    "build the table with cost_table(model)",
                )

    @cached_property
    def _sums(self) -> dict[str, np.ndarray]:
        """Prefix sums of the columns: entry b is the sum of the first b values."""
        return {
            column.name: np.append(np.zeros(1, values.dtype), np.cumsum(values))
            for column in fields(self)
            if isinstance(values := getattr(self, column.name), np.ndarray)
        }

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return len(self.names)

    def step_flops(self, first: Any = 0, exit: Any = None, heads: Any = None) -> np.ndarray:
        """FLOPs per sample of one training step of the sub-models `(first, exit)`.

        Args:
          first: shallowest trained block, int or int array.
          exit: block whose head gives the loss, int or int array; None for the last.
          heads: blocks among `first..exit - 1` whose heads also give a loss, bool[..., L]; its
            leading axes broadcast against `first` and `exit`. None for no further heads.

        Returns:
          The FLOPs, float64 of the broadcast shape of `first`, `exit` and the leading axes of
          `heads`.
        """
        first, exit = self._sub_model(first, exit)
        head = self.exit_forward_flops + self.exit_weight_grad_flops + self.exit_input_grad_flops
        return (
            self._sums["forward_flops"][exit + 1]
            + _between(self._sums["weight_grad_flops"], first, exit + 1)
            + _between(self._sums["input_grad_flops"], first + 1, exit + 1)
            + self._of_heads(head, first, exit, heads)
        )

    def forward_pass_flops(self, exit: Any = None) -> np.ndarray:
        """FLOPs per sample of inference through block `exit` and its head; float64."""
        _, exit = self._sub_model(0, exit)
        return self._sums["forward_flops"][exit + 1] + self.exit_forward_flops[exit]

    def upload_bytes(self, first: Any = 0, exit: Any = None, heads: Any = None) -> np.ndarray:
        """Bytes that a client uploads: the trained blocks, their statistics and the exit heads.

        Args:
          first: shallowest trained block, as in `step_flops`.
          exit: block whose head gives the loss, as in `step_flops`.
          heads: blocks whose heads also give a loss, as in `step_flops`.

        Returns:
          The bytes, int64 of the broadcast shape.
        """
        first, exit = self._sub_model(first, exit)
        sent = self._sums["param_bytes"] + (self._sums["stats_bytes"] if self.uploads_stats else 0)
        return _between(sent, first, exit + 1) + self._head_bytes(first, exit, heads)

    def download_bytes(self) -> int:
        """Bytes of the whole model: parameters, running statistics and all heads."""
        heads = self.exit_param_bytes.max() if self.shared_exit else self.exit_param_bytes.sum()
        return int((self.param_bytes + self.stats_bytes).sum() + heads)

    def held_bytes(self, exit: Any, heads: Any = None) -> np.ndarray:
        """Bytes of a sub-model, which is all that a client needs to download if it has no more.

        Args:
          exit: block whose head gives the loss, as in `step_flops`.
          heads: blocks before it whose heads also do, as in `step_flops`.

        Returns:
          The bytes of parameters and statistics of the blocks `0..exit` and of the parameters of
          the heads, int64 of the broadcast shape.
        """
        first, exit = self._sub_model(0, exit)
        blocks = (self._sums["param_bytes"] + self._sums["stats_bytes"])[exit + 1]
        return blocks + self._head_bytes(first, exit, heads)

    def memory_bytes(
        self, first: Any, exit: Any, batch: Any, optimizer_slots: int = 0, heads: Any = None
    ) -> np.ndarray:
        """Memory that a device needs to train the sub-model, in bytes; a lower bound.

        It is the sum of the parameters and statistics of the blocks that run, of a gradient and the
        optimiser's arrays for the blocks that train, and of the values that the trained blocks keep
        of every sample for the backward pass.

        Args:
          first: shallowest trained block, as in `step_flops`.
          exit: block whose head gives the loss, as in `step_flops`.
          batch: samples per step, int or int array.
          optimizer_slots: number of arrays per parameter that the client's optimiser keeps: 0 for
            SGD, 1 with momentum, 2 for Adam.
          heads: blocks whose heads also give a loss, as in `step_flops`.

        Returns:
          The bytes, int64 of the broadcast shape.
        """
        first, exit = self._sub_model(first, exit)
        batch = np.asarray(batch)
        require(
            batch.dtype.kind in "iu" and bool((batch >= 1).all()) and optimizer_slots >= 0,
            f"batch = {batch}, optimizer_slots = {optimizer_slots}",
            "batch must be an integer >= 1 and optimizer_slots >= 0",
            "use the local batch size, and 0 slots for SGD",
        )
        held = self.held_bytes(exit, heads)
        trained = _between(self._sums["param_bytes"], first, exit + 1)
        trained = trained + self._head_bytes(first, exit, heads)
        stored = _between(self._sums["stored_bytes"], first, exit + 1)
        stored = stored + self._of_heads(self.exit_stored_bytes, first, exit, heads)
        return held + (1 + optimizer_slots) * trained + batch * stored

    def _of_heads(
        self, values: np.ndarray, first: np.ndarray, exit: np.ndarray, heads: Any
    ) -> np.ndarray:
        """The sum of `values` over the heads of the sub-models."""
        if heads is None:
            return values[exit]
        return values[exit] + np.sum(self._further(first, exit, heads) * values, axis=-1)

    def _head_bytes(self, first: np.ndarray, exit: np.ndarray, heads: Any) -> np.ndarray:
        """Bytes of the parameters of the heads of the sub-models; a shared head counts once."""
        values = self.exit_param_bytes
        if heads is None or not self.shared_exit:
            return self._of_heads(values, first, exit, heads)
        further = np.max(self._further(first, exit, heads) * values, axis=-1)
        return np.maximum(values[exit], further)

    def _further(self, first: np.ndarray, exit: np.ndarray, heads: Any) -> np.ndarray:
        heads, blocks = np.asarray(heads), np.arange(self.num_blocks)
        inside = (blocks >= first[..., None]) & (blocks < exit[..., None])
        shaped = heads.dtype == bool and heads.shape[-1:] == blocks.shape and self.has_exits
        require(
            shaped and bool((inside | ~heads).all()),
            lambda: f"heads = {heads}, first = {first}, exit = {exit}",
            f"must be bool[..., {self.num_blocks}] and mark trained blocks before the exit only",
            "leave out the exit itself, and use a model with exit heads",
        )
        return heads

    def _sub_model(self, first: Any, exit: Any) -> tuple[np.ndarray, np.ndarray]:
        last = self.num_blocks - 1
        first, exit = np.asarray(first), np.asarray(last if exit is None else exit)
        require(
            first.dtype.kind in "iu" and exit.dtype.kind in "iu",
            lambda: f"first of type {first.dtype}, exit of type {exit.dtype}",
            "must be integers",
            "pass block indices",
        )
        require(
            bool(((first >= 0) & (first <= exit) & (exit <= last)).all()),
            lambda: f"first = {first}, exit = {exit}",
            f"must satisfy 0 <= first <= exit <= {last}",
            "train at least one block",
        )
        require(
            self.has_exits or bool((exit == last).all()),
            lambda: f"exit = {exit}",
            f"must be {last}: the model has no exit heads",
            "use with_exits(model)",
        )
        return first, exit


def _between(sums: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    return sums[stop] - sums[start]


def cost_table(model: BlockModel) -> CostTable:
    """Counts the prices of `model` from its jaxprs, on abstract values; nothing is compiled.

    FLOPs are those of contractions, 1 multiply-add = 2 FLOPs; see `contraction_flops`. They are
    counted at batch size 1, so work that a block does once per step is charged to every sample.

    Args:
      model: model to price.

    Returns:
      The table.

    Raises:
      InputError: if the FLOPs of a block cannot be counted.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = model.shapes
    inputs = [model.input_shapes(1)]
    inputs += model.activation_shapes(1)
    live = model.stats_policy == "mean"
    priced = pricing(live, key)
    blocks = [
        priced(block, params["blocks"][b], stats["blocks"][b], inputs[b])
        for b, block in enumerate(model.blocks)
    ]
    heads = [
        priced(head, params["exits"][slot], stats["exits"][slot], inputs[b + 1])
        for b, head in enumerate(model.exits)
        for slot in (model.exit_slot(b),)
    ]
    heads += [BlockPrice()] * (len(blocks) - len(heads))

    def column(prices: list[BlockPrice], name: str) -> np.ndarray:
        kind = np.float64 if name.endswith("_flops") else np.int64
        return np.asarray([getattr(price, name) for price in prices], kind)

    names = [f.name for f in fields(BlockPrice)]
    return CostTable(
        names=tuple(block.name for block in model.blocks),
        stats_bytes=np.asarray([tree_bytes(s) for s in stats["blocks"]], np.int64),
        activation_bytes=np.asarray([tree_bytes(z) for z in inputs[1:]], np.int64),
        has_exits=bool(model.exits),
        shared_exit=model.shared_exit,
        uploads_stats=live,
        **{name: column(blocks, name) for name in names},
        **{f"exit_{name}": column(heads, name) for name in names},
    )


def price(
    table: CostTable,
    fleet: Fleet,
    clients: np.ndarray,
    first: Any,
    exit: Any,
    samples: Any,
    now_s: float | np.ndarray,
    rng: np.random.Generator | None,
    *,
    heads: Any = None,
    flops: np.ndarray | None = None,
    bytes_down: np.ndarray | None = None,
    bytes_up: np.ndarray | None = None,
) -> Timing:
    """The timing of one task per client: download the model, train the sub-model, upload it.

    Args:
      table: prices of the model.
      fleet: fleet of devices.
      clients: ids of the clients, int64[k].
      first: shallowest trained block, int or int[k].
      exit: block whose head gives the loss, int or int[k]; None for the last.
      samples: samples processed in the task (steps x batch), int or int[k], >= 1.
      now_s: virtual time of dispatch in seconds, a number or float64[k].
      rng: generator that draws the jitter of the durations; None for expected durations.
      heads: blocks whose heads also give a loss, bool[k, L]; None for no further heads.
      flops: work of each task, float64[k], in place of `samples * step_flops` (for splits, widths,
        densities).
      bytes_down: bytes of each download, int64[k], in place of the whole model.
      bytes_up: bytes of each upload, int64[k], in place of the trained blocks.

    Returns:
      The timing; see `Fleet.timing`.
    """
    samples = np.asarray(samples)
    require(
        samples.dtype.kind in "iu" and bool((samples >= 1).all()),
        lambda: f"samples = {samples}",
        "must be integers >= 1",
        "give every task at least one sample",
    )
    if flops is None:
        flops = samples * table.step_flops(first, exit, heads)
    if bytes_down is None:
        bytes_down = np.asarray(table.download_bytes())
    if bytes_up is None:
        bytes_up = table.upload_bytes(first, exit, heads)
    return fleet.timing(clients, flops, bytes_down, bytes_up, now_s, rng)
