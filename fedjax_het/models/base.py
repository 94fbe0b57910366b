"""A model is an ordered tuple of blocks: what is frozen, exited from, split and priced is a block.

Order is explicit everywhere: `params["blocks"]` is a tuple with the input side first, so that no
rule about the names of layers (or the sorting of dictionaries) can change which block is deep.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models import checks
from fedjax_het.models.block import Block, cast

Array = jax.Array

# Exit heads draw their initial weights from keys far from those of the blocks.
_EXIT_KEY = 10_000


@dataclass(frozen=True, eq=False)
class BlockModel:
    """A classifier made of blocks; static, hashable by identity, to be closed over by jitted code.

    Attributes:
      name: for records and plots.
      blocks: input side first; the last one gives the logits.
      input_shape: shape of one sample, without a batch axis.
      num_classes: size of the last axis of the logits.
      exits: a head after each of the blocks 0..L-2, or `()`; see `with_exits`.
      shared_exit: all exits are one head, and `params["exits"]` has one entry.
      input_dtype: float32, or int32 for models of tokens.
      stats_policy: `"mean"`: running statistics (BatchNorm) are updated in training and averaged
        over the clients that trained the block. `"frozen"`: they are always used and never updated.
      compute_dtype: of activations and matrix products, "float32" or "bfloat16"; parameters,
        statistics and whatever leaves the model are float32 (`precision.with_compute_dtype`).
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
        """What `init` returns as `ShapeDtypeStruct`s; found once, and nothing is computed."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def exit_slot(self, block: int) -> int:
        """Where `params["exits"]` holds the head after a block."""
        return 0 if self.shared_exit else block

    def init(self, key: Array) -> Variables:
        """Fresh variables; block b draws from `fold_in(key, b)`, so exits do not change the blocks.

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
          variables: from `init`.
          x: `[batch, *input_shape]`.
          train: train mode (static): dropout, and batch statistics in the blocks that keep any.
          key: typed PRNG key for dropout; block b uses `fold_in(key, b)`.
          first: static; blocks before it are frozen: they pass no gradient, and those with running
            statistics use them and return them unchanged. Their dropout stays on, so that freezing
            by route and freezing by mask give the same numbers.
          exit: static; block whose head gives the logits. None or L-1 is the network's own; for
            b < L-1 the blocks after b are not run and their statistics come back unchanged.
          live: `bool[L]` or None; in train mode a block with running statistics behaves as in eval
            mode where `live` is False.

        Returns:
          `(logits float32[batch, num_classes], stats)`.

        Raises:
          InputError: for an `x`, `first` or `exit` that does not fit the model.
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
        """Logits of every head in one pass; arguments as in `apply`.

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
        """The network's own logits, with a stop after every block.

        Args:
          variables: from `init`.
          x: `[batch, *input_shape]`.
          visit: `(b, z) -> z`, float32: what block b + 1 is given in place of the output z of
            block b; for the last block, the logits.
          train: as in `apply`.
          key: as in `apply`.

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
        """Client half h of a split after block `block`: the activation that leaves it.

        Running `forward_from` on the result equals `apply`, dropout included.

        Args:
          variables: from `init`.
          x: `[batch, *input_shape]`.
          block: 0..L-2, the last block to run.
          train: as in `apply`.
          key: as in `apply`.
          first: as in `apply`.
          live: as in `apply`.

        Returns:
          `(z, stats)`, z float32; statistics of the blocks that were not run come back unchanged.
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
          variables: from `init`.
          z: what `forward_to(variables, x, block)` gave.
          block: 0..L-2, the block that gave `z`; blocks `block + 1`..L-1 are run.
          train: as in `apply`.
          key: as in `apply`.
          live: as in `apply`.

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
        """Shape of each block's output for a batch, and its dtype outside; nothing is computed."""
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
        """Runs the blocks `which`; goes on with `visit(b, output of b)` after each."""
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
        """What a block is given to compute with."""
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
