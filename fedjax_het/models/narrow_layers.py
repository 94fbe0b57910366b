"""Layers of a network that run at another width than that at which they were made.

A layer of flax has the number of its outputs as an attribute. While a block runs, the attributes of
the copies that flax makes for this run are set from the spans of their parameters. A module of
another library, or of a user, that reads a width from an attribute has a method for it::

    def at_width(self, lengths):
        return {"width": sum(lengths("symbol")[1])}     # attribute and its value

`lengths(*path)` are the lengths of the spans along every axis of the parameter at `path`, below the
module. Modules that take every width from the shapes of their inputs need nothing.

Zeros in place of units that are not live leave dense, convolutional, recurrent and embedding layers
as they are. What is different for layers that mix channels or divide by their number is here.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.widths import Axes, Counts, Layout, size_of
from fedjax_het.contract.widths import live as live_of
from fedjax_het.models import norm
from fedjax_het.models.layer_widths import ATTENTION, CHANGES, kind_of, output_axes
from fedjax_het.models.lstm import Vectors
from fedjax_het.models.transformer import Embedding, Encoder

Array = jax.Array
Path: TypeAlias = tuple[str, ...]

# The run at another width that goes on, an `AtWidth`, or None.
_CURRENT: contextvars.ContextVar[Any] = contextvars.ContextVar("current", default=None)

# Classes of flax by name: products with a kernel, plus a bias; norms with moments over all
# channels, and of each.
_PRODUCTS = ("Dense", "Linear", "Conv", "ConvTranspose", "DenseGeneral", "LinearGeneral")
_MEANS = ("LayerNorm", "RMSNorm")
_BY_CHANNEL = ("BatchNorm", "InstanceNorm")


@dataclass(frozen=True)
class AtWidth:
    """One run of a block at another width.

    Attributes:
      block: name of the block.
      layout: groups of the model, whose `axes` are those of the block's parameters.
      counts: number of units of the parameters by group.
      live: number of units by group that are not zeros behind the others, static or traced int32[];
        None for all.
      scale: factor on the outputs of linear layers in train mode.
      train: whether train mode is on; may be traced.
    """

    block: str
    layout: Layout
    counts: Counts
    live: Counts | None
    scale: Any
    train: bool | Array
    _attention: set[Path] = field(default_factory=set)
    _handlers: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the layers of the block run at the width of the parameters."""

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            layer, method = context.module, context.method_name
            if method == "at_width" or self._handlers[-1] is not intercept:
                return call(*args, **kwargs)
            if method == "__call__":
                return self.run(layer, layer.scope.path, call, args, kwargs)
            self._resize(layer, layer.scope.path)
            return call(*args, **kwargs)

        token = _CURRENT.set(self)
        self._handlers.append(intercept)
        try:
            with nn.intercept_methods(intercept):
                yield
        finally:
            self._handlers.pop()
            _CURRENT.reset(token)

    def run(
        self, layer: Any, path: Path, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Calls a layer.

        Args:
          layer: bound module of linen, or module of nnx, made for this run.
          path: place of its parameters in the block.
          call: its call.
          args: positional arguments of the call.
          kwargs: keyword arguments of the call.

        Returns:
          The outputs.

        Raises:
          InputError: if the layer cannot run at the width.
        """
        self._resize(layer, path)
        if self.live is not None:
            call = self._over_live(layer, path, call, self.live)
        factor = self._factor(layer, path)
        if factor is None:
            return call(*args, **kwargs)
        if kind_of(layer) not in _PRODUCTS:
            y = call(*args, **kwargs)
            return y * jnp.asarray(factor, y.dtype)
        with _scaled(layer, factor):
            return call(*args, **kwargs)

    def _resize(self, layer: Any, path: Path) -> None:
        """Sets the attributes of a layer that are widths."""
        own = _at(self.layout.axes, path)
        if own is None:
            return
        kind, changes = kind_of(layer), {}
        if hasattr(layer, "at_width"):
            changes = layer.at_width(functools.partial(self._lengths, own))
        elif kind in CHANGES:
            changes = CHANGES[kind](layer, functools.partial(self._shape, own))
        else:
            cut = [n for n, a in own.items() if isinstance(a, Axes) and self._cut(a)]
            self._require(
                not cut or kind is None or _is_norm(layer),
                path,
                layer,
                f"cannot run with another width of {cut}",
                "use nn.Dense, nn.Conv or nn.Embed, or give a class of your own a method at_width",
            )
        for name, value in changes.items():
            # The layer is a copy made for this run; the module of the model does not change.
            object.__setattr__(layer, name, value)
        if kind == "GroupNorm" or isinstance(layer, norm.GroupNorm):
            for counts in (self.counts, self.live or {}):
                self._check_groups(layer, path, own, counts)

    def _over_live(
        self, layer: Any, path: Path, call: Callable[..., Any], live: Counts
    ) -> Callable[..., Any]:
        """The call of a layer whose units but the live ones are zeros."""
        if isinstance(layer, Encoder) or kind_of(layer) in ATTENTION:
            self._require(
                not getattr(layer, "normalize_qk", False),
                path,
                layer,
                "normalises its queries, so that their length cannot be corrected",
                "use normalize_qk=False",
            )
            self._attention.add(path)
            return call
        if path[-1:] == ("query",) and path[:-1] in self._attention:
            return functools.partial(self._longer, path, call, live)
        kind = kind_of(layer)
        grouped = kind == "GroupNorm" or isinstance(layer, norm.GroupNorm)
        if not grouped and kind not in _MEANS and not isinstance(layer, norm.LayerNorm):
            return call
        own = _at(self.layout.axes, path) or {}
        axes = own.get("scale", own.get("bias"))
        # A norm without parameters, or with one for every position, does not tell its channels.
        known = axes if axes is not None and len(axes.spans) == 1 else Axes(((),))
        self._require(
            known is axes,
            path,
            layer,
            "has no parameter of every channel, so nothing tells which channels are live",
            "use a norm over the last axis, with scale or bias",
        )
        spans = known.spans[0]
        if all(span.group is None for span in spans):
            return call
        if not grouped:
            inside = live_of(Layout(self.layout.sizes, known), self.counts, live)
            return functools.partial(_over_mask, call, inside)
        self._require(
            len(spans) == 1 and spans[0].outer == 1,
            path,
            layer,
            "has channels of several groups of units, so its live ones are not adjacent",
            "normalise the parts before they are joined, or use a layer or batch norm",
        )
        count = jnp.asarray(size_of(spans, live), jnp.int32)
        if isinstance(layer, norm.GroupNorm):
            return functools.partial(call, live=count)
        self._require(
            isinstance(layer, nn.Module)
            and layer.num_groups is not None
            and layer.reduction_axes is None,
            path,
            layer,
            "has groups that clients of several widths cannot share",
            "give it num_groups and no reduction_axes, in a linen module",
        )
        scale, bias = (layer.get_variable("params", name) for name in ("scale", "bias"))
        options = {"groups": layer.num_groups, "eps": layer.epsilon, "live": count}
        return functools.partial(norm.live_group_norm, scale=scale, bias=bias, **options)

    def _longer(
        self, path: Path, call: Callable[..., Any], live: Counts, *args: Any, **kwargs: Any
    ) -> Array:
        """Queries times the root of their length over that of their live part."""
        spans = _at(self.layout.axes, path)["kernel"].spans[-1]
        ratio = size_of(spans, self.counts) / jnp.asarray(size_of(spans, live), jnp.float32)
        y = call(*args, **kwargs)
        return y * jnp.sqrt(ratio).astype(y.dtype)

    def _factor(self, layer: Any, path: Path) -> Any:
        """The factor on the outputs of a linear layer of units in train mode, or None."""
        idle = isinstance(self.scale, float) and self.scale == 1.0
        if self.train is False or idle or _is_norm(layer):
            return None
        own = _at(self.layout.axes, path) or {}
        kernels = {n: a for n, a in own.items() if isinstance(a, Axes) and len(a.spans) > 1}
        outputs = [n for n, a in kernels.items() if any(s.group for s in a.spans[-1])]
        if kind_of(layer) in ("DenseGeneral", "LinearGeneral"):
            inputs = len(own["kernel"].spans) - output_axes(layer)
            outputs = [n for n in ("kernel",) if _grouped(own[n].spans[inputs:])]
        if not outputs:
            return None
        self._require(
            kind_of(layer) in (*_PRODUCTS, "Embed") or isinstance(layer, (Vectors, Embedding)),
            path,
            layer,
            f"has {outputs}, whose products cannot be scaled",
            "train it without a scaler",
        )
        if self.train is True:
            return self.scale
        return jnp.where(self.train, jnp.float32(self.scale), jnp.float32(1.0))

    def _check_groups(self, layer: Any, path: Path, own: PyTree, counts: Counts) -> None:
        """Raises `InputError` unless a fixed number of groups divides the channels."""
        groups = layer.groups if isinstance(layer, norm.GroupNorm) else layer.num_groups
        axes = own.get("scale", own.get("bias"))
        if groups is None or not isinstance(axes, Axes) or not counts:
            return
        channels = size_of(axes.spans[-1], counts)
        if isinstance(channels, jax.core.Tracer):
            return
        self._require(
            channels % groups == 0,
            path,
            layer,
            f"has {channels} channels at this width, which {groups} groups do not divide",
            "choose fewer groups, or widths that are multiples of them",
        )

    def _require(self, holds: bool, path: Path, layer: Any, limit: str, remedy: str) -> None:
        kind = kind_of(layer) or type(layer).__name__
        require(holds, f"block {self.block!r}, layer {'/'.join(path)!r} ({kind})", limit, remedy)

    def _cut(self, axes: Axes) -> bool:
        """Whether a parameter has another shape than in the model."""
        return any(
            size_of(spans, self.counts) != size_of(spans, self.layout.sizes) for spans in axes.spans
        )

    def _shape(self, own: PyTree, *path: str) -> tuple[int, ...]:
        return tuple(size_of(spans, self.counts) for spans in _at(own, path).spans)

    def _lengths(self, own: PyTree, *path: str) -> tuple[tuple[int, ...], ...]:
        axes = _at(own, path)
        return tuple(tuple(size_of((s,), self.counts) for s in spans) for spans in axes.spans)


def current() -> AtWidth | None:
    """The run at another width that goes on, or None."""
    found: AtWidth | None = _CURRENT.get()
    return found


def innermost() -> AbstractContextManager[None]:
    """Inside, a run at another width handles calls after the interceptors that there are already.

    An interceptor that replaces calls, as for the cuts of a network, thus decides which are made.
    """
    at = current()
    return contextlib.nullcontext() if at is None else at.running()


@contextlib.contextmanager
def _scaled(layer: Any, factor: Any) -> Iterator[None]:
    """Inside, a layer multiplies its kernel and bias by a factor, as if it scaled its outputs.

    The parameters are smaller than the outputs: on a CPU a factor on the outputs of convolutions
    takes up to a third of the time of a round (`docs/performance.md`).
    """
    promote = layer.promote_dtype

    def scaled(x: Any, *params: Any, **options: Any) -> Any:
        own = (p if p is None else p * jnp.asarray(factor, p.dtype) for p in params)
        return promote(x, *own, **options)

    # The layer is a copy made for this run, and may be called again in it.
    object.__setattr__(layer, "promote_dtype", scaled)
    try:
        yield
    finally:
        object.__setattr__(layer, "promote_dtype", promote)


def _over_mask(call: Callable[..., Any], inside: Array, x: Array, **kwargs: Any) -> Any:
    """A norm over the channels `inside` and, if given, over `mask` only."""
    mask, inside = kwargs.pop("mask", None), inside.reshape(*(1,) * (x.ndim - 1), -1)
    return call(x, mask=inside if mask is None else inside & mask, **kwargs)


def _is_norm(layer: Any) -> bool:
    ours = (norm.BatchNorm, norm.GroupNorm, norm.LayerNorm)
    return isinstance(layer, ours) or kind_of(layer) in (*_MEANS, *_BY_CHANNEL, "GroupNorm")


def _at(tree: PyTree, path: Path) -> Any:
    """The branch of nested dictionaries at a path, or None."""
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _grouped(axes: Any) -> bool:
    return any(span.group is not None for spans in axes for span in spans)
