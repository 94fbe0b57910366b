"""Cuts of a flax network between the calls of its submodules, without changes to its code.

A part runs from the call of one submodule to the call of a later one. It runs the network's own
`__call__` with these changes: stubs replace the results of the earlier calls, the part's input
becomes the argument of its first call, and the run stops at the call of the later one. Operations
between the calls (activations, pooling, reshaping) therefore run as the network defines them.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.models.inputs import batch_size

Array = jax.Array
# Handles a call: `visit(index, name, call, args, kwargs)` returns its result.
Visit = Callable[[int, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

# Batch sizes of the recorded runs. Two sizes show which axes depend on the batch; odd numbers are
# unlikely to be the size of another axis.
PROBES = (3, 5)
# Keyword arguments that give a module its mode, and their values in training.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Call(NamedTuple):
    """One call of a submodule, recorded: shapes of its first argument (or None) and its result."""

    name: str
    argument: Any
    result: PyTree


class Part(NamedTuple):
    """A part of a network.

    Attributes:
      names: submodules with parameters that start here, joined by `+`; `""` if there are none.
      start: first call to run; 0 also runs the operations before it.
      stop: first call not to run, whose argument is the result; None runs to the end.
      used: whether the result depends on each leaf of the network's variables.
    """

    names: str
    start: int
    stop: int | None
    used: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A flax network as a function that shows the calls of its submodules.

    Attributes:
      shapes: variables of the network as `ShapeDtypeStruct`s.
      samples: function from a batch size to the shapes of the samples.
      trace: function `(variables, x, train, visit) -> outputs`; every call of a direct submodule
        becomes one of `visit`.
    """

    shapes: PyTree
    samples: Callable[[int], PyTree]
    trace: Callable[[PyTree, PyTree, bool, Visit], Any]

    def record(self, batch: int, train: bool = False) -> list[Call]:
        """The calls for a batch of samples; nothing is computed."""
        calls: list[Call] = []

        def visit(index: int, name: str, call: Any, args: Any, kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            first = args[0] if args and isinstance(args[0], jax.Array) else None
            calls.append(Call(name, shapes_of(first), shapes_of(result)))
            return result

        def run(variables: PyTree, x: PyTree) -> Any:
            return self.trace(variables, x, train, visit)

        jax.eval_shape(run, self.shapes, self.samples(batch))
        return calls

    @functools.cached_property
    def stubs(self) -> Callable[[int], tuple[PyTree, list[PyTree]]]:
        """Function from a batch size to the shapes of the samples and of the calls' results."""

        @functools.cache
        def find(batch: int) -> tuple[PyTree, list[PyTree]]:
            return self.samples(batch), [call.result for call in self.record(batch)]

        return find


class _Reached(Exception):  # noqa: N818 - not an error
    """Stops a run before its end and carries the activation."""

    def __init__(self, value: Array):
        super().__init__()
        self.value = value


def shapes_of(arrays: PyTree) -> PyTree:
    """`ShapeDtypeStruct`s of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)


def mode_of(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The keyword arguments of `call` that set the mode, with their values."""
    names = inspect.signature(call).parameters
    return {name: train == value for name, value in _MODES.items() if name in names}


def run_part(
    trace: Callable[[PyTree, Visit], Any],
    z: PyTree,
    start: int,
    stop: int | None,
    stubs: Callable[[int], tuple[PyTree, list[PyTree]]],
) -> Array:
    """Runs calls `start..stop` of a network.

    Args:
      trace: function `(x, visit) -> outputs` of the network, given its variables and mode.
      z: samples if `start` is 0, else the activation at call `start`.
      start: first call to run, as in `Part`.
      stop: first call not to run, as in `Part`.
      stubs: function as in `Network.stubs`.

    Returns:
      The activation at `stop`, or the outputs.
    """
    x, results = z, []
    if start > 0:
        x, results = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stubs(batch_size(z)))

    def visit(index: int, name: str, call: Any, args: Any, kwargs: Any) -> Any:
        if index < start:
            return results[index]
        if index == stop:
            raise _Reached(args[0])
        if index == start > 0:
            args = (z, *args[1:])
        return call(*args, **kwargs)

    try:
        return trace(x, visit)
    except _Reached as reached:
        return reached.value


def cut(network: Network, has_parameters: Callable[[str], bool]) -> list[Part]:
    """The finest parts that are functions of one array and of variables that no other part uses.

    Args:
      network: network to cut.
      has_parameters: whether the submodule of a name has any; a part starts at one that does.

    Returns:
      The parts, input side first.

    Raises:
      InputError: if the network calls other submodules in training.
    """
    calls, other = (network.record(batch) for batch in PROBES)
    names = [call.name for call in calls]
    starts = [i for i, name in enumerate(names) if has_parameters(name)]
    in_training = [call.name for call in network.record(PROBES[0], train=True)]
    require(
        in_training == names,
        f"submodules called in training {in_training}, in evaluation {names}",
        "must be the same",
        "switch inside the submodules, or pass the sequence [module] for a single block",
    )
    graph = _Graph(network)

    def cuts_at(i: int) -> bool:
        z = calls[i].argument
        if z is None or not z.shape or (z.shape[0], other[i].argument.shape[0]) != PROBES:
            return False
        return graph.separates(i)

    cuts = [i for i in starts[1:] if cuts_at(i)]
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, None]):
        inside = dict.fromkeys(names[i] for i in starts if start <= i < (stop or len(names)))
        parts.append(Part("+".join(inside), start, stop, graph.used(start, stop)))
    return parts


def depends(function: Callable[[Array], PyTree], argument: Any) -> bool:
    """Whether the result of a function depends on its argument; nothing is computed."""
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    return jaxpr.invars[0] in _needed(jaxpr, jaxpr.outvars)


def _needed(jaxpr: Jaxpr, ends: Iterable[Any], given: Any = None) -> set[Any]:
    """All values of a program that lead to `ends` if the value `given` is known."""
    made = {value: equation for equation in jaxpr.eqns for value in equation.outvars}
    seen: set[Any] = set()
    waiting = list(ends)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Literal) or value in seen or value is given:
            continue
        seen.add(value)
        if value in made:
            waiting += made[value].invars
    return seen


class _Graph:
    """What the outputs and the arguments of the calls of a network depend on, in eval mode."""

    def __init__(self, network: Network):
        marks: list[tuple[Any, PyTree]] = []

        def visit(index: int, name: str, call: Any, args: Any, kwargs: Any) -> Any:
            # Copies have names of their own in the jaxpr, also if a shortcut uses the same value.
            first = jnp.copy(args[0]) if args and isinstance(args[0], jax.Array) else None
            args = args if first is None else (first, *args[1:])
            marks.append((first, jax.tree.map(jnp.copy, call(*args, **kwargs))))
            return marks[-1][1]

        def run(variables: PyTree, x: PyTree) -> Any:
            return network.trace(variables, x, False, visit), marks

        sample = network.samples(PROBES[0])
        closed, shape = jax.make_jaxpr(run, return_shape=True)(network.shapes, sample)
        self._needed = functools.partial(_needed, closed.jaxpr)
        size = len(jax.tree.leaves(network.shapes))
        self._variables = closed.jaxpr.invars[:size]
        self._samples = closed.jaxpr.invars[size:]
        self._outputs, calls = jax.tree.unflatten(jax.tree.structure(shape), closed.jaxpr.outvars)
        self._arguments = [argument for argument, _ in calls]
        self._results = [jax.tree.leaves(result) for _, result in calls]

    def separates(self, i: int) -> bool:
        """Whether all that follows depends on what was before only by the argument of call i."""
        after = self._needed(jax.tree.leaves(self._outputs), self._arguments[i])
        before = self._needed([self._arguments[i]])
        hidden = [*self._samples, *(v for result in self._results[:i] for v in result)]
        return after.isdisjoint(hidden) and after.isdisjoint(before.intersection(self._variables))

    def used(self, start: int, stop: int | None) -> tuple[bool, ...]:
        """Whether each leaf of the variables is used between two calls."""
        ends: Sequence[Any]
        ends = jax.tree.leaves(self._outputs) if stop is None else [self._arguments[stop]]
        needed = self._needed(ends, self._arguments[start] if start else None)
        return tuple(v in needed for v in self._variables)
