"""Ties between positions along the axes of arrays that operations combine.

Every position along an axis of a parameter gets a number of its own, an *atom*. Labels of an array
say for each of its axes which atoms lie along it. Operations tie atoms: those of equal positions of
a sum, or those over which a product adds up. `propagation` follows the operations of a block, and
`units` makes units of the atoms that are tied.
"""

import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from jax.extend.core import JaxprEqn

# The atom of everything that no sub-network cuts: classes, input features, rows of a table.
FIXED = 0

_MIXES = "mixes hidden units, so that a part of them would compute something else"


class Kind(enum.Enum):
    """Axes without atoms.

    Attributes:
      VARIES: values differ along the axis, as over samples, pixels or time.
      CONSTANT: values are equal along the axis, whose length is therefore of no importance.
    """

    VARIES = enum.auto()
    CONSTANT = enum.auto()


# What lies along an axis: a kind, or the atom of each position, int64[n].
Label = Kind | np.ndarray
Labels = tuple[Label, ...]


class Refusal(NamedTuple):
    """An operation that mixes units, so that they cannot be cut.

    Attributes:
      atoms: atoms of the units; the refusal holds if any of them is not fixed otherwise.
      block: name of the block.
      operation: name of the operation in JAX.
      reason: what the operation does, in words.
    """

    atoms: np.ndarray
    block: str
    operation: str
    reason: str


class Ties:
    """The ties of a model, collected while its operations are followed.

    Attributes:
      block: name of the block whose operations are followed now.
      refusals: operations that mix units.
      slices: atoms of every slice of an axis of units. Units that go through different slices may
        be treated differently and do not take each other's places.
    """

    def __init__(self) -> None:
        self.block = ""
        self.refusals: list[Refusal] = []
        self.slices: list[np.ndarray] = []
        self._count = FIXED + 1
        self._edges: list[np.ndarray] = []
        self._roots = np.zeros(0, np.int64)
        self._solved = -1

    def fresh(self, shape: Sequence[int]) -> Labels:
        """Labels of a parameter: an atom of its own for every position of every axis."""
        stops = list(itertools.accumulate(shape, initial=self._count))
        self._count = stops[-1]
        return tuple(np.arange(*pair) for pair in itertools.pairwise(stops))

    def tie(self, one: Any, other: Any) -> None:
        """Ties atoms to each other, position by position; the arguments are broadcast."""
        pair = np.broadcast_arrays(one, other)
        self._edges.append(np.stack([side.reshape(-1) for side in pair]))

    def fix(self, label: Label) -> None:
        """Keeps the atoms of an axis, if it has any, in every sub-network."""
        if isinstance(label, np.ndarray):
            self.tie(label, FIXED)

    def join(self, labels: Sequence[Label]) -> Label:
        """Label of an axis that several arrays share; their atoms are tied.

        Where the values of another array vary without atoms, the units would meet values that are
        not theirs in a sub-network, so that they are fixed.
        """
        atoms = [label for label in labels if isinstance(label, np.ndarray)]
        if not atoms:
            return Kind.VARIES if Kind.VARIES in labels else Kind.CONSTANT
        for other in atoms[1:]:
            if other is not atoms[0]:
                self.tie(atoms[0], other)
        # `in` would compare arrays.
        if any(label is Kind.VARIES for label in labels):
            self.fix(atoms[0])
        return atoms[0]

    def refuse(
        self,
        operation: str,
        labels: Sequence[Label],
        sizes: Sequence[int] = (),
        reason: str = _MIXES,
    ) -> list[Label]:
        """Records that an operation mixes the units along some axes, if they have any.

        Args:
          operation: name of the operation in JAX.
          labels: labels of the axes.
          sizes: lengths of the axes of the result that hold what was mixed.
          reason: what the operation does, in words.

        Returns:
          Labels of the axes of the result, with an atom of the units everywhere: if they are fixed,
          and the refusal is void, so is what follows.
        """
        atoms = [label for label in labels if isinstance(label, np.ndarray) and label.size]
        if not atoms:
            return [Kind.VARIES] * len(sizes)
        self.refusals.append(Refusal(np.concatenate(atoms), self.block, operation, reason))
        return [np.full(size, atoms[0][0]) for size in sizes]

    def part(self, label: Label, index: Any) -> Label:
        """Label of a slice along an axis."""
        if not isinstance(label, np.ndarray):
            return label
        part = label[index]
        if part.size < label.size:
            self.slices.append(part)
        return part

    def split(self, atoms: np.ndarray) -> Labels:
        """Labels of an axis that becomes several.

        If the atoms differ along more than one of the new axes, as those of a layer that becomes
        heads and the length of their vectors, they are tied along all of these but the last.

        Args:
          atoms: atoms in the new shape.
        """
        varying = [a for a, size in enumerate(atoms.shape) if size > 1] or [atoms.ndim - 1]
        if len(varying) > 1:
            roots = self.roots()[atoms]
            varying = [
                a for a in varying if np.any(roots != np.take(roots, [0], axis=a))
            ] or varying[-1:]
        for axis in varying[:-1]:
            self.tie(atoms, np.take(atoms, [0], axis=axis))
        first = tuple(slice(None) if a == varying[-1] else 0 for a in range(atoms.ndim))
        others = [Kind.VARIES if size > 1 else Kind.CONSTANT for size in atoms.shape]
        return tuple(atoms[first] if a == varying[-1] else k for a, k in enumerate(others))

    def fixed(self, label: np.ndarray) -> np.ndarray:
        """Whether each atom is fixed by the ties so far, bool[n]."""
        roots = self.roots()
        return roots[label] == roots[FIXED]

    def roots(self) -> np.ndarray:
        """The tied set to which each atom belongs by the ties so far, int[atoms]."""
        if self._solved != len(self._edges) or len(self._roots) != self._count:
            # Solved sets replace the edges, so that the next solution is as fast.
            one, other = (
                np.concatenate(self._edges, axis=1) if self._edges else np.zeros((2, 0), int)
            )
            graph = scipy.sparse.coo_array(
                (np.ones(len(one), bool), (one, other)), (self._count, self._count)
            )
            self._roots = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
            self._solved = len(self._edges)
        return self._roots


# `(ties, equation, inputs) -> outputs`: labels of the results of an operation, from those of its
# operands; the ties that it makes are added.
Rule = Callable[[Ties, JaxprEqn, list[Labels]], list[Labels]]


class Rules(dict[str, Rule]):
    """Rules by name of the operation in JAX."""

    def of(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator that adds a rule for operations of these names."""

        def add(rule: Rule) -> Rule:
            self.update(dict.fromkeys(names, rule))
            return rule

        return add


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a value of a traced program."""
    return value.aval.shape


def constant(value: Any) -> Labels:
    """Labels of a constant: along each axis its values are equal, or vary."""
    shape = np.shape(value)
    try:
        array = np.asarray(value)
    except TypeError:  # keys of random numbers
        return (Kind.VARIES,) * len(shape)
    if not array.size:
        return (Kind.VARIES,) * len(shape)
    equal = (np.all(array == np.take(array, [0], axis=a)) for a in range(array.ndim))
    return tuple(Kind.CONSTANT if each else Kind.VARIES for each in equal)
