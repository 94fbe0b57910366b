"""Hidden units of a model, found by following the operations of its blocks; nothing is computed.

Units are positions that take each other's places: a channel of a convolution with its bias and
norm, and with the rows of all layers that read it. Sub-networks by width hold some units of every
group (`contract.widths`): HeteroFL (Diao et al. 2021), FedRolex (Alam et al. 2022), FjORD (Horvath
et al. 2021), Federated Dropout (Caldas et al. 2018). What such methods share is found here for any
network, rather than written for each: residual stages share one group, a flattened image repeats
the channels at every pixel, heads of attention hold slices of the same length.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.widths import Axes, Layout, Span
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.lowering import lowering
from fedjax_het.models.origin import require_complete
from fedjax_het.models.propagation import follow, used_inputs
from fedjax_het.models.saving import leaf_paths
from fedjax_het.models.stand_ins import elementwise_norms
from fedjax_het.models.tying import FIXED, Kind, Labels, Ties

# Samples of the traced batch.
_BATCH = 2

_KNOWN: "weakref.WeakKeyDictionary[BlockModel, Layout]" = weakref.WeakKeyDictionary()


class _Tensor(NamedTuple):
    """A parameter or statistic.

    Attributes:
      block: name of its block.
      path: its name in the block.
      roots: number of the tied set of every position along each axis.
    """

    block: str
    path: str
    roots: tuple[np.ndarray, ...]


def layout_of(model: BlockModel) -> Layout:
    """The groups of hidden units of a model, and where they lie in its tensors; cached.

    Positions are tied by the operations that combine them, in eval mode. Positions that are tied to
    classes, to features of the samples, to rows of a table that data choose, or to values that vary
    without units are held by every sub-network. Units that lie equally often in the same tensors
    form one group. Norms count as elementwise, because a sub-network normalises what it holds.

    Args:
      model: model of the library or of `from_flax`.

    Returns:
      The layout. A group has the name of the first tensor along whose last axis it lies, such as
      `"conv1/Conv_0/bias"`.

    Raises:
      InputError: if an operation mixes units so that they cannot be cut (a grouped convolution, a
        softmax or a sum over hidden units, an attention layer of flax), if the model has no hidden
        units, or if it has constant values.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _found(model)
    return _KNOWN[model]


def _found(model: BlockModel) -> Layout:
    require_complete(model, "cut it by width")
    ties = Ties()
    leaves, structure = jax.tree.flatten(model.shapes)
    labels = [ties.fresh(leaf.shape) for leaf in leaves]
    _collect(model, ties, labels)
    _check_refusals(model, ties)
    tensors = _tensors(model, ties.roots(), labels)
    groups = _groups(ties, tensors)
    require(
        bool(groups),
        f"model {model.name!r}",
        "has no hidden units that a sub-network could leave out",
        "use a model with a hidden layer, or a method without sub-networks by width",
    )
    group = np.full(len(ties.roots()), -1)
    rank = np.zeros(len(group), np.int64)
    for g, units in enumerate(groups):
        group[units], rank[units] = g, np.arange(len(units))
    names = _names([[group[roots] for roots in tensor.roots] for tensor in tensors], tensors)
    sizes = {names[g]: len(units) for g, units in enumerate(groups)}
    axes = []
    for tensor in tensors:
        found = [_spans(group[roots], rank[roots], names, sizes) for roots in tensor.roots]
        require(
            all(spans is not None for spans in found),
            f"tensor {tensor.path!r} of block {tensor.block!r} of model {model.name!r}",
            "holds hidden units in an order that is not repeated",
            "reorder the layer, or use a method without sub-networks by width",
        )
        axes.append(Axes(tuple(spans or () for spans in found)))
    return Layout(sizes, jax.tree.unflatten(structure, axes))


def _collect(model: BlockModel, ties: Ties, labels: list[Labels]) -> None:
    """Ties the positions of a model's tensors by all that its blocks and heads do."""
    shapes = model.shapes
    index = jax.tree.unflatten(jax.tree.structure(shapes), range(len(labels)))
    used = np.zeros(len(labels), bool)

    def run(part: str, slot: int, block: Block, x: Any, given: Sequence[Labels]) -> tuple[Any, Any]:
        """Shape and labels of the output of a block or head."""
        params, stats = shapes.params[part][slot], shapes.stats[part][slot]
        own = jax.tree.leaves((index.params[part][slot], index.stats[part][slot]))
        ties.block = block.name

        def outputs(params: PyTree, stats: PyTree, x: PyTree) -> Any:
            return block.apply(params, stats, x, train=False, key=None)[0]

        where = f"block {block.name!r} of model {model.name!r}"
        with lowering("lax"), elementwise_norms(where):
            program, y = jax.make_jaxpr(outputs, return_shape=True)(params, stats, x)
        [result] = follow(ties, program, [*(labels[i] for i in own), *given])
        used[own] |= used_inputs(program)[: len(own)]
        return y, result

    x: Any = model.input_shapes(_BATCH)
    given: list[Labels] = [(Kind.VARIES,) * len(leaf.shape) for leaf in jax.tree.leaves(x)]
    ends = []
    for b, block in enumerate(model.blocks):
        x, z = run("blocks", b, block, x, given)
        given = [z]
        if b == model.num_blocks - 1:
            ends.append(z)
        elif model.exits:
            ends.append(run("exits", model.exit_slot(b), model.exits[b], x, given)[1])
    unused = [labels[i] for i in np.flatnonzero(~used)]
    for label in (label for each in (*ends, *unused) for label in each):
        ties.fix(label)


def _check_refusals(model: BlockModel, ties: Ties) -> None:
    for atoms, block, operation, reason in ties.refusals:
        require(
            bool(np.all(ties.fixed(atoms))),
            f"operation {operation!r} in block {block!r} of model {model.name!r}",
            reason,
            "keep it out of the hidden layers, or use a method without sub-networks by width",
        )


def _tensors(model: BlockModel, roots: np.ndarray, labels: list[Labels]) -> list[_Tensor]:
    """The tensors of a model, in the order of the leaves of its variables."""
    tensors = []
    for path, own in zip(leaf_paths(model.shapes), labels, strict=True):
        _, part, slot, *inside = path
        block = (model.blocks if part == "blocks" else model.exits)[int(slot)]
        found = tuple(roots[np.asarray(atoms)] for atoms in own)
        tensors.append(_Tensor(block.name, "/".join(inside), found))
    return tensors


def _groups(ties: Ties, tensors: list[_Tensor]) -> list[np.ndarray]:
    """The units of every group, each by the number of its tied set, in the order of position."""
    roots = ties.roots()
    places = [along for tensor in tensors for along in tensor.roots]
    places += [roots[atoms] for atoms in ties.slices]
    lies: dict[int, list[tuple[int, int]]] = {}
    for place, along in enumerate(places):
        found, counts = np.unique(along, return_counts=True)
        for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
            lies.setdefault(unit, []).append((place, count))
    groups: dict[tuple, list[int]] = {}
    # Numbers of atoms follow the order of the tensors and of positions.
    _, first = np.unique(roots, return_index=True)
    for unit in roots[np.sort(first)].tolist():
        if unit != roots[FIXED]:
            groups.setdefault(tuple(lies[unit]), []).append(unit)
    return [np.asarray(units) for units in groups.values()]


def _names(lies: list[list[np.ndarray]], tensors: list[_Tensor]) -> dict[int, str]:
    """Names of the groups: that of the first tensor along whose last axis a group lies.

    Args:
      lies: index of the group at every position of every axis of the tensors, -1 for none.
      tensors: the tensors.
    """
    names: dict[int, str] = {}
    last = [(tensor, axes[-1:]) for tensor, axes in zip(tensors, lies, strict=True)]
    for tensor, axes in [*last, *zip(tensors, lies, strict=True)]:
        inside = dict.fromkeys(g for axis in axes for g in axis.tolist() if g >= 0)
        for g in [g for g in inside if g not in names]:
            name = f"{tensor.block}/{tensor.path}"
            taken = sum(known.partition(":")[0] == name for known in names.values())
            names[g] = f"{name}:{taken + 1}" if taken else name
    return names


def _spans(
    group: np.ndarray, rank: np.ndarray, names: dict[int, str], sizes: dict[str, int]
) -> tuple[Span, ...] | None:
    """The spans of an axis, or None if its units are in an order that spans cannot say.

    Args:
      group: index of the group at every position, -1 for positions without a unit.
      rank: place in the group of the unit at every position.
      names: names of the groups by index.
      sizes: number of units of every group by name.
    """
    spans: list[Span] = []
    start, length = 0, len(group)
    while start < length:
        here = int(group[start])
        name = names.get(here)
        same = (group[start:] == here) & ((rank[start:] == rank[start]) | (name is None))
        run = int(np.argmin(same)) if not np.all(same) else length - start
        if name is None:
            spans.append(Span(None, run))
            start += run
            continue
        period = np.repeat(np.arange(sizes[name]), run)
        outer = 0
        while np.array_equal(rank[start : start + len(period)], period) and np.all(
            group[start : start + len(period)] == here
        ):
            outer, start = outer + 1, start + len(period)
        if outer == 0:
            return None
        spans.append(Span(name, outer, run))
    return tuple(spans)
