r"""Tensors in the order of the computation, and the costs of the backward pass through each.

FedEL prices a set A of tensors as the sum of two parts (Zhang et al. 2025, section 3;
methods/fedel.md 1.3)::

    cost(A) = sum_{k in A} t_w^k  +  sum of t_g^k over all k that the gradient passes on its path
                                     from the loss down to the shallowest tensor d = min A

Both are counted in the model's jaxprs. Within a block let $B(S)$ be the FLOPs of the backward pass
to the tensors S (x is the block's input). Then

* $t_w^j = B(\text{all}, x) - B(\text{all} \setminus j, x)$ is the saving without tensor j;
* the chain down to tensor d costs $B(\{d, ..., \text{last}\}) - \sum_{k \ge d} t_w^k$, and the
  differences of the chain between neighbours are the $t_g$.

For consecutive layers these are the usual filter and input gradients. For parallel branches
(shortcuts, attention) the price of a set is never below its true cost. Per block the sums are
exactly `CostTable.weight_grad_flops` and `input_grad_flops`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.fleet.cost import CostTable
from fedjax_het.fleet.flops import differentiable, jaxpr_flops
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.lowering import lowering

Chain = Literal["exclusive", "inclusive"]


@dataclass(frozen=True, eq=False)
class TensorTimes:
    """Trainable tensors from input to output, and their backward prices in one unit.

    Attributes:
      names: names `block/path`, a kernel before its bias.
      block: int64[K], block of each tensor, ascending.
      weight: float64[K], cost t_w of the tensor's own gradient.
      through: float64[K], cost t_g of the gradient for the tensor before it.
      size_bytes: int64[K], size of each tensor.
      num_blocks: number of blocks, B.
      index: positions in this order, a pytree per block with the structure of the block's
        parameters; () for times without a model.
    """

    names: tuple[str, ...]
    block: np.ndarray
    weight: np.ndarray
    through: np.ndarray
    size_bytes: np.ndarray
    num_blocks: int
    index: tuple[PyTree, ...] = ()

    def __post_init__(self) -> None:
        for column in (self.block, self.weight, self.through, self.size_bytes):
            require(
                column.shape == (len(self.names),)
                and bool(np.isfinite(column).all() and (column >= 0).all()),
                f"tensor times {column}",
                f"must be {len(self.names)} finite numbers >= 0, one per tensor",
                "make them with tensor_times(model, cost)",
            )
        require(
            bool(np.all(np.diff(self.block) >= 0)) and bool(np.all(self.block < self.num_blocks)),
            f"blocks of the tensors {self.block}",
            f"must ascend within 0..{self.num_blocks - 1}",
            "list the tensors from input to output",
        )

    @property
    def num_tensors(self) -> int:
        """K, the number of tensors."""
        return len(self.names)

    @property
    def block_cost(self) -> np.ndarray:
        """Backward cost T_b of each block, float64[B]."""
        return np.bincount(self.block, self.weight + self.through, self.num_blocks)

    @property
    def total(self) -> float:
        """Backward cost of the whole network."""
        return float(np.sum(self.weight) + np.sum(self.through))

    def blocks_of(self, chosen: np.ndarray) -> np.ndarray:
        """Mask of the blocks of which a tensor is chosen, bool[n, B].

        Args:
          chosen: mask of the chosen tensors, bool[n, K].
        """
        member = self.block[:, None] == np.arange(self.num_blocks)
        return (chosen.astype(np.int64) @ member.astype(np.int64)) > 0

    def chain(self, exit: np.ndarray, convention: Chain = "exclusive") -> np.ndarray:
        """Cost of the gradient's path from the loss down to each tensor.

        Args:
          exit: block after which the loss is taken, int64[n]; deeper blocks cost nothing.
          convention: tensors on the path to d: "exclusive", those after d, as in the paper's
            figure 3; "inclusive", also d itself, as in the code of ElasticTrainer.

        Returns:
          Costs float64[n, K]; inf for tensors after the exit.
        """
        return chain_cost(self.through, self.block, exit, convention)

    def cost(self, chosen: np.ndarray, exit: np.ndarray, convention: Chain) -> np.ndarray:
        """Backward cost of a set of tensors per client, float64[n]; 0 for an empty set.

        Args:
          chosen: mask of the chosen tensors, bool[n, K].
          exit: block after which the loss is taken, int64[n].
          convention: convention of the path, see `chain`.
        """
        shallowest = np.argmax(chosen, axis=1)
        way = self.chain(exit, convention)[np.arange(len(chosen)), shallowest]
        return np.where(chosen.any(axis=1), chosen @ self.weight + way, 0.0)


def chain_cost(
    through: np.ndarray, block: np.ndarray, exit: np.ndarray, convention: Chain
) -> np.ndarray:
    """`TensorTimes.chain` of given t_g, float64[K] or one row per client, float64[n, K]."""
    require_known(convention, ("exclusive", "inclusive"), "chain")
    before_exit = block <= np.asarray(exit)[:, None]
    crossed = np.where(before_exit, through, 0.0)
    down = np.cumsum(crossed[:, ::-1], axis=1)[:, ::-1]
    if convention == "exclusive":
        # A shift, because a difference would have rounding errors.
        down = np.append(down[:, 1:], np.zeros((len(down), 1)), axis=1)
    return np.where(before_exit, down, np.inf)


def tensor_times(model: BlockModel, cost: CostTable) -> TensorTimes:
    """Prices every tensor of `model` in FLOPs per sample.

    A tensor without contractions (bias, norm) costs one FLOP per value of its block's output,
    because its gradient is a sum over them. This is in addition to the contractions, whose sum is
    `cost`.

    Args:
      model: network to price.
      cost: prices of its blocks. Measured prices (`profile.with_measured`) of a block's weight
        gradient are divided among its tensors in proportion to their FLOPs.

    Returns:
      The times of all tensors except exit heads.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = [model.input_shapes(1)]
    shapes += model.activation_shapes(1)
    names: list[str] = []
    columns: list[list[float]] = []
    index = []
    known: dict[str, tuple[list[int], np.ndarray, np.ndarray]] = {}
    crossed = 0.0
    for b, block in enumerate(model.blocks):
        params, stats = model.shapes.params["blocks"][b], model.shapes.stats["blocks"][b]
        train = model.stats_policy == "mean" or not jax.tree.leaves(stats)
        paths = [
            "/".join(str(getattr(part, "key", part)) for part in path)
            for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
        ]
        backward = _Backward(block, params, stats, shapes[b], train, key)
        # Equal blocks of a deep network are priced once.
        if backward.text not in known:
            known[backward.text] = backward.prices()
        order, weight, through = known[backward.text]
        weight, through = weight.copy(), through.copy()
        if weight.size:
            counted = weight.sum() + through[1:].sum()
            if counted > 0:
                factor = cost.weight_grad_flops[b] / counted
                weight, through = weight * factor, through * factor
            # No tensor is before the first; the path crosses blocks without tensors.
            through[0] = cost.input_grad_flops[b] + crossed if names else 0.0
            crossed = 0.0
        elif names:
            crossed += cost.input_grad_flops[b]
        elements = int(np.prod(shapes[b + 1].shape))
        leaves, structure = jax.tree.flatten(params)
        places = np.argsort(np.asarray(order, np.int64)) + len(names)
        index.append(jax.tree.unflatten(structure, places.tolist()))
        for place, i in enumerate(order):
            names.append(f"{block.name}/{paths[i]}")
            nbytes = leaves[i].size * leaves[i].dtype.itemsize
            columns.append([b, weight[place] or elements, through[place], nbytes])
    table = np.asarray(columns, np.float64).reshape(-1, 4)
    return TensorTimes(
        names=tuple(names),
        block=table[:, 0].astype(np.int64),
        weight=table[:, 1],
        through=table[:, 2],
        size_bytes=table[:, 3].astype(np.int64),
        num_blocks=model.num_blocks,
        index=tuple(index),
    )


class _Backward:
    """Counts of the backward pass of one block to chosen tensors; leaves are in tree order.

    The block is traced once with all its gradients. The cost of a set is counted after the other
    gradients are removed from the jaxpr.
    """

    def __init__(self, block: Block, params: PyTree, stats: PyTree, x: Any, train: bool, key: Any):
        leaves, structure = jax.tree.flatten(params)
        has_gradient = differentiable(x)

        def run(leaves: Sequence[Any], x: Any, stats: PyTree, key: Any) -> Any:
            tree = jax.tree.unflatten(structure, leaves)
            return block.apply(tree, stats, x, train=train, key=key)[0]

        def step(g: Any, leaves: Sequence[Any], x: Any, stats: PyTree, key: Any) -> Any:
            if has_gradient:
                y, pullback = jax.vjp(lambda leaves, x: run(leaves, x, stats, key), leaves, x)
                grads, input_grad = pullback(g)
                return y, grads, input_grad
            y, pullback = jax.vjp(lambda leaves: run(leaves, x, stats, key), leaves)
            return y, pullback(g)[0], ()

        # As in `flops.price_block`: the prices do not depend on the backend.
        with lowering("patches"):
            forward = jax.make_jaxpr(run)(leaves, x, stats, key)
            y = jax.eval_shape(run, leaves, x, stats, key)
            self._step = jax.make_jaxpr(step)(y, leaves, x, stats, key).jaxpr
        self._forward_flops = jaxpr_flops(forward.jaxpr)
        self._differentiable = has_gradient
        self.order = _first_uses(forward.jaxpr, len(leaves))
        self.text = str(forward)

    def flops(self, chosen: Sequence[int], with_input: bool) -> float:
        """B(chosen), with the gradient of the input if there is one."""
        used = [True] + [i in chosen for i in range(len(self.order))]
        used += [with_input] * self._differentiable
        needed, _ = dce_jaxpr(self._step, used)
        return float(jaxpr_flops(needed) - self._forward_flops)

    def prices(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Arrays `(order, t_w, t_g)` in the order of the computation, contractions only."""
        order = self.order
        everything = self.flops(order, True)
        weight = np.asarray(
            [everything - self.flops([j for j in order if j != i], True) for i in order]
        )
        reach = np.asarray([self.flops(order[place:], False) for place in range(len(order))])
        chain = reach - np.cumsum(weight[::-1])[::-1]
        before = np.append(everything - np.sum(weight), chain)[: len(order)]
        return order, weight, before - chain


def _first_uses(jaxpr: Jaxpr, count: int) -> list[int]:
    """The first `count` inputs of a jaxpr, ordered by their first use."""
    found: list[int] = []

    def visit(jaxpr: Jaxpr, known: dict[Any, int]) -> None:
        for equation in jaxpr.eqns:
            used = [None if hasattr(v, "val") else known.get(v) for v in equation.invars]
            for nested in _inner(equation.params):
                # The arguments are the last inputs; a conditional has its predicate before them.
                pairs = zip(reversed(nested.invars), reversed(used))
                visit(nested, {v: leaf for v, leaf in pairs if leaf is not None})
            found.extend(dict.fromkeys(i for i in used if i is not None and i not in found))

    visit(jaxpr, {variable: i for i, variable in enumerate(jaxpr.invars[:count])})
    return found + [i for i in range(count) if i not in found]


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
