"""Blocks of a flax nnx network: split into its definition and its values, and merged for a run."""

import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import lax

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.models import norm, stand_ins
from fedjax_het.models.block import Block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.cutting import (
    Network,
    Part,
    Visit,
    cut,
    depends,
    mode_of,
    run_part,
    shapes_of,
)
from fedjax_het.models.narrow_layers import AtWidth, current

Array = jax.Array

_REMEDY = "pass a linen module, an nnx module or a function `lambda rngs: Net(rngs=rngs)`"


class _Values(NamedTuple):
    """The values of a module, each an `nnx.State` by kind."""

    params: PyTree
    stats: PyTree
    random: PyTree
    constants: PyTree


@dataclass(frozen=True, eq=False)
class NnxSource:
    """A network as its definition, and a function that gives its values.

    Attributes:
      name: name of the module's class.
      definition: graph of the module, without values.
      shapes: values of the module as `ShapeDtypeStruct`s, but constants as they are.
      values: function from a typed PRNG key to new values.
    """

    name: str
    definition: Any
    shapes: _Values
    values: Callable[[Array], _Values]

    def block(self, name: str) -> Block:
        """The whole network as one block."""
        used = (True,) * len(jax.tree.leaves(self.shapes[:2]))
        return self._block(name, Part(name, 0, None, used), lambda batch: (None, []))

    def blocks(self, samples: Callable[[int], PyTree]) -> list[Block]:
        """The blocks between the calls of direct submodules, input side first.

        A variable belongs to the block that uses it. A network that cannot be cut is one block.

        Args:
          samples: function from a batch size to the shapes of the samples.
        """

        def trace(variables: PyTree, x: PyTree, train: bool, visit: Visit) -> Any:
            params, stats = variables
            module = self._merged(params, stats, jax.random.key(0))
            return _run(module, x, train, visit, None)

        network = Network(self.shapes[:2], samples, trace)
        abstract = self._merged(*self.shapes[:2], jax.random.key(0))
        trainable = {
            name
            for name, child in _children(abstract)
            if jax.tree.leaves(nnx.state(child, nnx.Param))
        }
        parts = cut(network, trainable.__contains__)
        # What no result depends on goes to the first block, so that it is not lost.
        idle = [not any(part.used[i] for part in parts) for i in range(len(parts[0].used))]
        used = tuple(a or b for a, b in zip(parts[0].used, idle, strict=True))
        parts[0] = parts[0]._replace(used=used)
        return [self._block(part.names or self.name, part, network.stubs) for part in parts]

    def _merged(self, params: PyTree, stats: PyTree, key: Array) -> nnx.Module:
        """The module with these values; its random streams get keys from `key`."""
        leaves, structure = jax.tree.flatten(self.shapes.random)

        def fresh(i: int, leaf: Any) -> Array:
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.zeros(leaf.shape, leaf.dtype)
            own = jax.random.fold_in(key, i)
            return jax.random.split(own, leaf.shape) if leaf.shape else own

        random = jax.tree.unflatten(structure, [fresh(i, leaf) for i, leaf in enumerate(leaves)])
        return nnx.merge(self.definition, params, stats, random, self.shapes.constants)

    def _block(self, name: str, part: Part, stubs: Callable[[int], Any]) -> Block:
        size = len(jax.tree.leaves(self.shapes.params))
        params_of = _Share(self.shapes.params, part.used[:size])
        stats_of = _Share(self.shapes.stats, part.used[size:])

        def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
            values = self.values(key)
            held = params_of.take(values.params), stats_of.take(values.stats)
            # A run may give the memory of its start away.
            return jax.tree.map(jnp.copy, held)

        def apply(
            params: PyTree,
            stats: PyTree,
            x: PyTree,
            *,
            train: bool,
            key: Array | None,
            weight: Array | None = None,
        ) -> tuple[Array, PyTree]:
            def run(key: Array) -> tuple[Array, nnx.Module]:
                module = self._merged(params_of.put(name, params), stats_of.put(name, stats), key)
                trace = functools.partial(_run, module, train=train, weight=weight)
                y = run_part(
                    lambda z, visit: trace(z, visit=visit), x, part.start, part.stop, stubs
                )
                return y, module

            if key is None:
                key = jax.random.key(0)
                streams = bool(jax.tree.leaves(self.shapes.random))
                require(
                    not (streams and depends(lambda key: run(key)[0], key)),
                    f"block {name!r} draws random numbers but key is None",
                    "training with dropout needs a key, and evaluation must not draw",
                    "pass key=jax.random.key(...), or let the mode of the module stop its dropout",
                )
            y, module = run(key)
            if not train or not stats:
                return y, stats
            new = stats_of.take(nnx.state(module, nnx.BatchStat))
            return y, norm.updated(stats, lax.stop_gradient(new), weight)

        return Block(name, init, apply)


class _Share:
    """The part of a state that one block holds, as a dictionary of arrays by submodule."""

    def __init__(self, shapes: PyTree, held: tuple[bool, ...]):
        self._shapes, self._structure = jax.tree.flatten(shapes)
        self._paths = _paths(shapes)
        self._held = held

    def take(self, state: PyTree) -> PyTree:
        """The arrays of this block."""
        leaves = zip(self._paths, jax.tree.leaves(state), self._held, strict=True)
        return traverse_util.unflatten_dict({path: a for path, a, held in leaves if held})

    def put(self, name: str, arrays: PyTree) -> PyTree:
        """A state with these arrays; all others are shapes, which cannot be used."""
        flat = traverse_util.flatten_dict(arrays)
        expected = {p: s.shape for p, s, held in zip(self._paths, self._shapes, self._held) if held}
        found = {path: jnp.shape(a) for path, a in flat.items()}
        require(
            found == expected or (current() is not None and found.keys() == expected.keys()),
            lambda: f"parameters of block {name!r} {['/'.join(path) for path in flat]}",
            f"do not fit its module, which has {['/'.join(path) for path in expected]}",
            "take them from init() of this same model",
        )
        leaves = [flat.get(path, s) for path, s in zip(self._paths, self._shapes, strict=True)]
        return jax.tree.unflatten(self._structure, leaves)


def nnx_source(module: Any) -> NnxSource:
    """An nnx module, or a function of `rngs` that makes one, as definition and values.

    Args:
      module: nnx module, whose present values are those of every key, or the function.

    Returns:
      The source.

    Raises:
      InputError: if it is neither, or the module holds variables of another kind.
    """
    if isinstance(module, nnx.Module):
        definition, split = _split(module)
        # The module may change later.
        present = jax.tree.map(jnp.copy, split)
        return NnxSource(type(module).__name__, definition, _shapes(present), lambda key: present)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    # The metaclass of nnx hides the arguments of a class.
    maker = module.__init__ if inspect.isclass(module) else module
    require(
        callable(module) and "rngs" in inspect.signature(maker).parameters,
        f"module of type {kind}",
        "must be a flax module, or a function of `rngs` that makes an nnx module",
        _REMEDY,
    )
    made = nnx.eval_shape(lambda: module(rngs=nnx.Rngs(0)))
    require(
        isinstance(made, nnx.Module),
        f"{type(made).__name__} of {kind}",
        "must be an nnx module",
        _REMEDY,
    )
    definition, shapes = _split(made)

    def values(key: Array) -> _Values:
        return _split(module(rngs=nnx.Rngs(key)))[1]

    # Constants are values that no key changes, as the positions of a table.
    if jax.tree.leaves(shapes.constants):
        shapes = shapes._replace(constants=values(jax.random.key(0)).constants)
    return NnxSource(type(made).__name__, definition, shapes, values)


def _split(module: nnx.Module) -> tuple[Any, _Values]:
    definition, *states = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    leaves = jax.tree.leaves(states[3], is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    others = sorted({type(leaf).__name__ for leaf in leaves if isinstance(leaf, nnx.Variable)})
    require(
        not others,
        f"module {type(module).__name__} with nnx variables {others}",
        "may hold nnx.Param, nnx.BatchStat and random streams",
        "keep other state out of the module",
    )
    return definition, _Values(*states)


def _shapes(values: _Values) -> _Values:
    params, stats, random, constants = values
    return _Values(shapes_of(params), shapes_of(stats), shapes_of(random), constants)


def _paths(state: PyTree) -> list[tuple[str, ...]]:
    """Names of the variables of a state, in the order of its leaves."""

    def keys(path: Any) -> Iterator[str]:
        return (str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))

    return [tuple(keys(path)) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


# What replaces the calls of the submodules of the network that runs.
_HANDLER: contextvars.ContextVar[Callable[..., Any]] = contextvars.ContextVar("handler")


@functools.cache
def _watched(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The class `kind`, but its calls go to the handler."""

    class Watched(kind):  # type: ignore[valid-type, misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(kind.__call__, self)
            return _HANDLER.get()(self, call, args, kwargs)

    return Watched


def _run(module: nnx.Module, x: PyTree, train: bool, visit: Visit, weight: Array | None) -> Any:
    """Runs `module`, made for this run, with `visit` in place of its direct submodules' calls."""
    names: dict[int, str] = {}
    for name, child in _children(module):
        names.setdefault(id(child), name)
    mode = mode_of(type(module).__call__, train)
    at, paths = current(), dict[int, tuple[str, ...]]()
    for path, child in list(nnx.iter_modules(module)):
        paths.setdefault(id(child), tuple(map(str, path)))
        if isinstance(child, nnx.Conv) and child.conv_general_dilated is lax.conv_general_dilated:
            child.conv_general_dilated = _convolution
        resized = at is not None and not isinstance(child, (nnx.List, nnx.Dict))
        watched = id(child) in names or isinstance(child, nnx.BatchNorm)
        if watched or resized or stand_ins.replaces(child):
            child.__class__ = _watched(type(child))
    count, inside = 0, False

    def handle(child: nnx.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal count, inside
        if isinstance(child, nnx.BatchNorm) and weight is not None:
            kwargs = norm.masked(weight, args, kwargs)
        if stand_ins.replaces(child):
            call = functools.partial(stand_ins.called, child, call)
        if at is not None and id(child) in paths:
            call = _at_width(at, child, paths[id(child)], call)
        # Copies that a transformation makes inside a run are no submodules of the network.
        if inside or id(child) not in names:
            return call(*args, **kwargs)
        count, inside = count + 1, True
        try:
            return visit(count - 1, names[id(child)], call, args, kwargs)
        finally:
            inside = False

    if not mode:
        (module.train if train else module.eval)()
    token = _HANDLER.set(handle)
    try:
        return module(x, **mode)
    finally:
        _HANDLER.reset(token)


def _at_width(
    at: AtWidth, child: nnx.Module, path: tuple[str, ...], call: Callable[..., Any]
) -> Callable[..., Any]:
    """The call of a submodule in a run at another width."""
    return lambda *args, **kwargs: at.run(child, path, call, args, kwargs)


def _convolution(*args: Any, out_sharding: Any = None, **kwargs: Any) -> Array:
    """The convolution of this library, which knows no sharding, with the arguments of nnx."""
    return conv_general_dilated(*args, **kwargs)


def _children(module: nnx.Module, prefix: str = "") -> Iterator[tuple[str, nnx.Module]]:
    """Submodules that are attributes, or entries of lists and dictionaries, with their names."""
    for key, child in nnx.iter_children(module):
        if isinstance(child, (nnx.List, nnx.Dict)):
            yield from _children(child, f"{prefix}{key}_")
        elif isinstance(child, nnx.Module):
            yield f"{prefix}{key}", child
