"""Models as ordered tuples of blocks, which are the units of freezing, exits, cuts and prices.

The order is explicit: `params["blocks"]` is a tuple with the input side first, so that names of
layers (or the order of dictionaries) do not affect the depth of a block.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models import checks
from fedjax_het.models.block import Block, cast
from fedjax_het.models.origin import Origin

Array = jax.Array

# Offset of the keys of exit heads, so that they differ from those of the blocks.
_EXIT_KEY = 10_000


@dataclass(frozen=True, eq=False)
class BlockModel:
    """A classifier made of blocks; static and hashable by identity, for closures of jitted code.

    Attributes:
      name: name of the model in records and plots.
      blocks: blocks, input side first; the last block returns the logits.
      input_shape: shape of one sample, without a batch axis.
      num_classes: size of the last axis of the logits.
      exits: heads after each of the blocks 0..L-2, or `()`; see `with_exits`.
      shared_exit: whether all exits are one head, so that `params["exits"]` has one entry.
      input_dtype: dtype of the samples: float32, or int32 for models of tokens.
      stats_policy: rule of running statistics (BatchNorm). `"mean"`: updated in training and
        averaged over the clients that trained the block. `"frozen"`: always used and never updated.
      compute_dtype: dtype of activations and matrix products, "float32" or "bfloat16"; parameters,
        statistics and all outputs of the model are float32 (`precision.with_compute_dtype`).
      spec: arguments with which `models.build` makes the model again, or None.
      origin: complete model if this one has constant values (`freeze`, `lora`), else None.
    """

    name: str
    blocks: tuple[Block, ...]
    input_shape: tuple[int, ...]
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

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @functools.cached_property
    def shapes(self) -> Variables:
        """The variables of `init` as `ShapeDtypeStruct`s; cached, without computation."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def exit_slot(self, block: int) -> int:
        """Index in `params["exits"]` of the head after a block."""
        return 0 if self.shared_exit else block

    def init(self, key: Array) -> Variables:
        """New variables; block b draws from `fold_in(key, b)`, so exits do not change the blocks.

        Args:
          key: typed PRNG key.

        Returns:
          The variables, float32.
        """
        x = jax.ShapeDtypeStruct((1, *self.input_shape), self.input_dtype)
        blocks, exits = [], []
        for b, block in enumerate(self.blocks):
            params, stats = block.init(jax.random.fold_in(key, b), x)
            apply = functools.partial(block.apply, train=False, key=None)
            x = jax.eval_shape(apply, params, stats, x)[0]
            blocks.append((params, stats))
            if b < len(self.exits) and self.exit_slot(b) == b:
                head = self.exits[b].init(jax.random.fold_in(key, _EXIT_KEY + b), x)
                require(
                    not jax.tree.leaves(head[1]),
                    f"exit head {self.exits[b].name!r} has running statistics",
                    "heads must not, or clients that leave elsewhere would change them",
                    "use GroupNorm in exit heads",
                )
                exits.append(head)
        return Variables(
            {"blocks": tuple(p for p, _ in blocks), "exits": tuple(p for p, _ in exits)},
            {"blocks": tuple(s for _, s in blocks), "exits": tuple(s for _, s in exits)},
        )

    def apply(
        self,
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        exit: int | None = None,
        live: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Logits of one head.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`.
          train: whether train mode is on (static), with dropout and with batch statistics in the
            blocks that keep any.
          key: typed PRNG key for dropout; block b uses `fold_in(key, b)`.
          first: first block that is not frozen (static). Frozen blocks pass no gradient, and their
            running statistics are used and returned unchanged. Their dropout stays on, so that
            freezing by route and by mask gives the same numbers.
          exit: block whose head gives the logits (static). None or L-1 is the network's own head;
            for b < L-1 the blocks after b do not run and their statistics are returned unchanged.
          live: `bool[L]` or None; in train mode a block with running statistics behaves as in eval
            mode if its entry is False.

        Returns:
          `(logits float32[batch, num_classes], stats)`.

        Raises:
          InputError: if `x`, `first` or `exit` does not fit the model.
        """
        last = self.num_blocks - 1
        exit = last if exit is None else exit
        self._check(x, first, exit)
        x, stats = self._run(variables, x, range(exit + 1), train, key, first, live)
        if exit < last:
            x = self._head(variables, x, exit, train, key)
        return x.astype(jnp.float32), stats

    def apply_exits(
        self,
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        live: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Logits of every head in one pass; the arguments are those of `apply`.

        Returns:
          `(logits float32[L, batch, num_classes], stats)`; entry L-1 is the network's own head.
        """
        self._check(x, first, 0)
        logits: list[Array] = []

        def visit(b: int, z: Array) -> Array:
            head = z if b == self.num_blocks - 1 else self._head(variables, z, b, train, key)
            logits.append(head.astype(jnp.float32))
            return z

        _, stats = self._run(
            variables, x, range(self.num_blocks), train, key, first, live, visit=visit
        )
        return jnp.stack(logits), stats

    def walk(
        self,
        variables: Variables,
        x: Array,
        visit: Callable[[int, Array], Array],
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """The network's own logits, with a call of `visit` after every block.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`.
          visit: function `(b, z) -> z`, float32, from the output z of block b to the input of block
            b + 1, or to the logits for the last block.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.

        Returns:
          `(logits float32[batch, num_classes], stats)`.
        """
        self._check(x, 0, 0)
        blocks = range(self.num_blocks)
        logits, stats = self._run(variables, x, blocks, train, key, 0, None, visit=visit)
        return logits.astype(jnp.float32), stats

    def forward_to(
        self,
        variables: Variables,
        x: Array,
        block: int,
        *,
        train: bool = False,
        key: Array | None = None,
        first: int = 0,
        live: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Client half h of a split after block `block`: the activation of `block`.

        Running `forward_from` on the result equals `apply`, dropout included.

        Args:
          variables: variables of the model, from `init`.
          x: samples `[batch, *input_shape]`.
          block: last block to run, 0..L-2.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.
          first: first block that is not frozen, as in `apply`.
          live: mask of the blocks that update statistics, as in `apply`.

        Returns:
          `(z, stats)`, z float32; statistics of the blocks that do not run are returned unchanged.
        """
        self._check_boundary(block)
        self._check(x, first, block)
        z, stats = self._run(variables, x, range(block + 1), train, key, first, live)
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
    ) -> tuple[Array, PyTree]:
        """Server half g of a split after block `block`: logits from the activation `z` of `block`.

        Args:
          variables: variables of the model, from `init`.
          z: activation from `forward_to(variables, x, block)`.
          block: block whose output is `z`, 0..L-2; blocks `block + 1`..L-1 run.
          train: whether train mode is on, as in `apply`.
          key: typed PRNG key for dropout, as in `apply`.
          live: mask of the blocks that update statistics, as in `apply`.

        Returns:
          `(logits float32[batch, num_classes], stats)`.
        """
        self._check_boundary(block)
        deeper = range(block + 1, self.num_blocks)
        logits, stats = self._run(variables, z, deeper, train, key, 0, live)
        return logits.astype(jnp.float32), stats

    def apply_exit(
        self,
        variables: Variables,
        z: Array,
        block: int,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """Logits of the head after block `block` from its activation `z`; see `forward_to`."""
        self._check_boundary(block)
        return self._head(variables, z, block, train, key).astype(jnp.float32)

    def activation_shapes(self, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each block's output for a batch; nothing is computed."""
        x = jax.ShapeDtypeStruct((batch, *self.input_shape), self.input_dtype)
        shapes: list[jax.ShapeDtypeStruct] = []
        for b, block in enumerate(self.blocks):
            params, stats = self.shapes.params["blocks"][b], self.shapes.stats["blocks"][b]
            apply = functools.partial(block.apply, train=False, key=None)
            x = jax.eval_shape(apply, params, stats, x)[0]
            shapes.append(x)
        return tuple(shapes)

    def _run(
        self,
        variables: Variables,
        x: Array,
        which: range,
        train: bool,
        key: Array | None,
        first: int,
        live: Array | None,
        visit: Callable[[int, Array], Array] | None = None,
    ) -> tuple[Array, PyTree]:
        """Runs the blocks `which`; the input of the next is `visit(b, output of b)`."""
        stats = list(variables.stats["blocks"])
        for b in which:
            block = self.blocks[b]
            params, x = self._operands(variables.params["blocks"][b], x)
            block_key = None if key is None else jax.random.fold_in(key, b)
            run = functools.partial(block.apply, params, stats[b], x, key=block_key)
            if not train or not jax.tree.leaves(stats[b]):
                x = run(train=train)[0]
            elif b < first or self.stats_policy == "frozen":
                x = run(train=False)[0]
            elif live is None:
                x, stats[b] = run(train=True)
            elif block.traced_train:
                x, stats[b] = run(train=live[b])
            else:
                x, stats[b] = jax.lax.cond(
                    live[b], functools.partial(run, train=True), functools.partial(run, train=False)
                )
            if b < first:
                x = jax.lax.stop_gradient(x)
            if visit is not None:
                x = visit(b, x.astype(jnp.float32))
        return x, {**variables.stats, "blocks": tuple(stats)}

    def _head(
        self, variables: Variables, z: Array, b: int, train: bool, key: Array | None
    ) -> Array:
        require(
            bool(self.exits),
            f"exit = {b}",
            f"model {self.name!r} has no exit heads but its own after block {self.num_blocks - 1}",
            "use with_exits(model)",
        )
        head_key = None if key is None else jax.random.fold_in(key, _EXIT_KEY + b)
        slot = self.exit_slot(b)
        params, stats = variables.params["exits"][slot], variables.stats["exits"][slot]
        params, z = self._operands(params, z)
        return self.exits[b].apply(params, stats, z, train=train, key=head_key)[0]

    def _operands(self, params: PyTree, x: Array) -> tuple[PyTree, Array]:
        """The parameters and the input in the dtype of the computation."""
        if self.compute_dtype == "float32":
            return params, x
        return cast((params, x), self.compute_dtype)

    def _check(self, x: Array, first: int, exit: int) -> None:
        checks.check_samples(x, self.name, self.input_shape, self.input_dtype)
        known = (self.name, self.num_blocks)
        checks.check_block("exit", exit, *known, "use None for the network's own head")
        checks.check_block("first", first, *known, "use 0 to train everything")

    def _check_boundary(self, block: int) -> None:
        checks.check_boundary(block, self.name, self.num_blocks)
