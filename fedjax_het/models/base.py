"""Models as ordered tuples of blocks, which are the units of freezing, exits, cuts and prices.

The order is explicit: `params["blocks"]` is a tuple with the input side first, so that names of
layers (or the order of dictionaries) do not affect the depth of a block.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models import checks, inputs
from fedjax_het.models.block import Block, cast, in_mode
from fedjax_het.models.drawing import Draw
from fedjax_het.models.origin import Origin
from fedjax_het.models.shapes import EXIT_KEY, new_variables, output_of

Array = jax.Array


@dataclass(frozen=True, eq=False)
class BlockModel:
    """A network of blocks; static and hashable by identity, for closures of jitted code.

    Attributes:
      name: name of the model in records and plots.
      blocks: blocks, input side first; the first takes the samples, the last returns the outputs
        `[batch, ..., num_classes]`, and between them passes one array `[batch, ...]`.
      input_shape: shape of one sample, without a batch axis; a dictionary or tuple of shapes for
        samples that are dictionaries or tuples of arrays.
      num_classes: size of the last axis of the outputs.
      exits: heads after each of the blocks 0..L-2, or `()`; see `with_exits`.
      shared_exit: whether all exits are one head, so that `params["exits"]` has one entry.
      input_dtype: dtype of the samples: float32, int32 for tokens, or bool for masks; in the
        structure of `input_shape`.
      stats_policy: rule of running statistics (BatchNorm). `"mean"`: updated in training and
        averaged over the clients that trained the block. `"frozen"`: always used and never updated.
      compute_dtype: dtype of activations and matrix products, "float32" or "bfloat16"; parameters,
        statistics and all outputs of the model are float32 (`precision.with_compute_dtype`).
      spec: arguments with which `models.build` makes the model again, or None.
      origin: complete model if this one has constant values (`freeze`, `lora`), else None.
    """

    name: str
    blocks: tuple[Block, ...]
    input_shape: Any
    num_classes: int
    exits: tuple[Block, ...] = ()
    input_dtype: Any = jnp.float32
    stats_policy: Literal["mean", "frozen"] = "mean"
    shared_exit: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    spec: Mapping[str, Any] | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        checks.check_structure(
            self.name, len(self.blocks), len(self.exits), self.stats_policy, self.compute_dtype
        )
        self.input_shapes(1)

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @functools.cached_property
    def shapes(self) -> Variables:
        """The variables of `init` as `ShapeDtypeStruct`s; cached, without computation."""
        return self._draw.shapes

    @functools.cached_property
    def _draw(self) -> Draw:
        heads = self.exits[:1] if self.shared_exit else self.exits
        return Draw(lambda key: new_variables(self.blocks, heads, key, self.input_shapes(1)))

    def exit_slot(self, block: int) -> int:
        """Index in `params["exits"]` of the head after a block."""
        return 0 if self.shared_exit else block

    def init(self, key: Array) -> Variables:
        """New variables, float32, from a typed PRNG key.

        Block b draws from `fold_in(key, b)`, so exits do not change the blocks.
        """
        return self._draw(key)

    def apply(
        self,
        variables: Variables,
        x: PyTree,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        exit: int | None = None,
        live: Array | None = None,
        weight: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Outputs of one head.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`, or a pytree of them.
          train: whether train mode is on (static), with dropout and with batch statistics in the
            blocks that keep any.
          key: typed PRNG key for dropout; block b uses `fold_in(key, b)`.
          first: first block that is not frozen (static). Frozen blocks pass no gradient, and their
            running statistics are used and returned unchanged. Their dropout stays on, so that
            freezing by route and by mask gives the same numbers.
          exit: block whose head gives the outputs (static). None or L-1 is the network's own head;
            for b < L-1 the blocks after b do not run and their statistics are returned unchanged.
          live: `bool[L]` or None; in train mode a block with running statistics behaves as in eval
            mode if its entry is False.
          weight: `float32[batch]` or None, 1 for real samples and 0 for padding; in train mode
            blocks with running statistics take the moments of the real samples only.

        Returns:
          `(outputs float32[batch, ..., num_classes], stats)`.

        Raises:
          InputError: if `x`, `first` or `exit` does not fit the model.
        """
        last = self.num_blocks - 1
        exit = last if exit is None else exit
        self._check(x, first, exit)
        x, stats = self._run(variables, x, range(exit + 1), train, key, first, live, weight)
        if exit < last:
            x = self._head(variables, x, exit, train, key)
        return x.astype(jnp.float32), stats

    def apply_exits(
        self,
        variables: Variables,
        x: PyTree,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        live: Array | None = None,
        weight: Array | None = None,
        exits: Sequence[int] | None = None,
    ) -> tuple[Array, PyTree]:
        """Outputs of several heads in one pass; the other arguments are those of `apply`.

        The heads are those after the blocks `exits` (static; None for all of 0..L-1); L-1 is the
        network's own. Blocks after the deepest do not run.

        Returns:
          `(outputs float32[len(exits), batch, ..., num_classes], stats)`.
        """
        chosen = range(self.num_blocks) if exits is None else exits
        for block in chosen:
            self._check(x, first, block)
        outputs: dict[int, Array] = {}

        def visit(b: int, z: Array) -> Array:
            if b in chosen:
                head = z if b == self.num_blocks - 1 else self._head(variables, z, b, train, key)
                outputs[b] = head.astype(jnp.float32)
            return z

        which = range(max(chosen) + 1)
        _, stats = self._run(variables, x, which, train, key, first, live, weight, visit)
        return jnp.stack([outputs[b] for b in chosen]), stats

    def walk(
        self,
        variables: Variables,
        x: PyTree,
        visit: Callable[[int, Array], Array],
        *,
        train: bool = False,
        key: Array | None = None,
        weight: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """The network's own outputs, with a call of `visit` after every block.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`, or a pytree of them.
          visit: function `(b, z) -> z`, float32, from the output z of block b to the input of block
            b + 1, or to the outputs for the last block.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.
          weight: weight of each sample, as in `apply`.

        Returns:
          `(outputs float32[batch, ..., num_classes], stats)`.
        """
        self._check(x, 0, 0)
        blocks = range(self.num_blocks)
        outputs, stats = self._run(variables, x, blocks, train, key, 0, None, weight, visit)
        return outputs.astype(jnp.float32), stats

    def forward_to(
        self,
        variables: Variables,
        x: PyTree,
        block: int,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        live: Array | None = None,
        weight: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Client half h of a split after block `block`: the activation of `block`.

        Running `forward_from` on the result equals `apply`, dropout included.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`, or a pytree of them.
          block: last block to run, 0..L-2.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.
          first: first block that is not frozen, as in `apply`.
          live: mask of the blocks that update statistics, as in `apply`.
          weight: weight of each sample, as in `apply`.

        Returns:
          `(z, stats)`, z float32; statistics of the blocks that do not run are returned unchanged.
        """
        self._check_boundary(block)
        self._check(x, first, block)
        z, stats = self._run(variables, x, range(block + 1), train, key, first, live, weight)
        return z.astype(jnp.float32), stats

    def forward_from(
        self,
        variables: Variables,
        z: Array,
        block: int,
        *,
        train: bool = False,
        key: Array | None = None,
        live: Array | None = None,
        weight: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Server half g of a split after block `block`: outputs from the activation `z` of `block`.

        Args:
          variables: variables of the model, from `init`.
          z: activation from `forward_to(variables, x, block)`.
          block: block whose output is `z`, 0..L-2; blocks `block + 1`..L-1 run.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.
          live: mask of the blocks that update statistics, as in `apply`.
          weight: weight of each sample, as in `apply`.

        Returns:
          `(outputs float32[batch, ..., num_classes], stats)`.
        """
        self._check_boundary(block)
        deeper = range(block + 1, self.num_blocks)
        outputs, stats = self._run(variables, z, deeper, train, key, 0, live, weight)
        return outputs.astype(jnp.float32), stats

    def apply_exit(
        self,
        variables: Variables,
        z: Array,
        block: int,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """Outputs of the head after block `block` from its activation `z`; see `forward_to`."""
        self._check_boundary(block)
        return self._head(variables, z, block, train, key).astype(jnp.float32)

    def input_shapes(self, batch: int) -> PyTree:
        """Shape and dtype of a batch of samples, in the structure of `input_shape`."""
        return inputs.batch_of(self.input_shape, self.input_dtype, batch)

    def activation_shapes(self, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each block's output for a batch; nothing is computed."""
        x = self.input_shapes(batch)
        shapes: list[jax.ShapeDtypeStruct] = []
        for b, block in enumerate(self.blocks):
            params, stats = self.shapes.params["blocks"][b], self.shapes.stats["blocks"][b]
            x = output_of(block, params, stats, x)
            shapes.append(x)
        return tuple(shapes)

    def _run(
        self,
        variables: Variables,
        x: PyTree,
        which: range,
        train: bool,
        key: Array | None,
        first: int,
        live: Array | None,
        weight: Array | None,
        visit: Callable[[int, Array], Array] | None = None,
    ) -> tuple[Array, PyTree]:
        """Runs the blocks `which`; the input of the next is `visit(b, output of b)`."""
        stats = list(variables.stats["blocks"])
        for b in which:
            params, x = self._operands(variables.params["blocks"][b], x)
            block_key = None if key is None else jax.random.fold_in(key, b)
            updates = train and b >= first and self.stats_policy == "mean"
            x, stats[b] = in_mode(
                self.blocks[b],
                params,
                stats[b],
                x,
                train=train,
                updates=updates and (True if live is None else live[b]),
                key=block_key,
                weight=weight,
            )
            if b < first:
                x = jax.lax.stop_gradient(x)
            if visit is not None:
                x = visit(b, x.astype(jnp.float32))
        return x, {**variables.stats, "blocks": tuple(stats)}

    def _head(
        self, variables: Variables, z: Array, b: int, train: bool, key: Array | None
    ) -> Array:
        checks.check_has_exits(b, self.name, self.num_blocks, len(self.exits))
        head_key = None if key is None else jax.random.fold_in(key, EXIT_KEY + b)
        slot = self.exit_slot(b)
        params, stats = variables.params["exits"][slot], variables.stats["exits"][slot]
        params, z = self._operands(params, z)
        return self.exits[b].apply(params, stats, z, train=train, key=head_key)[0]

    def _operands(self, params: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """The parameters and the input in the dtype of the computation."""
        if self.compute_dtype == "float32":
            return params, x
        return cast((params, x), self.compute_dtype)

    def _check(self, x: PyTree, first: int, exit: int) -> None:
        inputs.check_samples(x, self.name, self.input_shape, self.input_dtype)
        known = (self.name, self.num_blocks)
        checks.check_block("exit", exit, *known, "use None for the network's own head")
        checks.check_block("first", first, *known, "use 0 to train everything")

    def _check_boundary(self, block: int) -> None:
        checks.check_boundary(block, self.name, self.num_blocks)
