"""What stands in for layers whose hidden units cannot be told by their operations.

Norms mix channels, but a sub-network normalises the channels that it holds, so a norm counts as
`y = x * scale + bias`. The attention layers of flax cannot be cut.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from fedjax_het.common.errors import require
from fedjax_het.models import norm

# Classes of flax.linen and of flax.nnx by name: importing nnx takes a fifth of a second.
_NORMS = ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
_ATTENTION = ("MultiHeadAttention", "MultiHeadDotProductAttention")

# Description of the block that is traced inside `elementwise_norms`, else None.
_TRACED: contextvars.ContextVar[str | None] = contextvars.ContextVar("traced", default=None)


# The interceptor of linen calls that acts, which is the innermost.
_ACTING: contextvars.ContextVar[object] = contextvars.ContextVar("acting", default=None)


@contextlib.contextmanager
def elementwise_norms(where: str) -> Iterator[None]:
    """Inside, norms are traced as `x * scale + bias`, and attention layers of flax are refused.

    Args:
      where: description of the block that is traced, for errors.
    """
    token = _TRACED.set(where)
    try:
        with innermost():
            yield
    finally:
        _TRACED.reset(token)


@contextlib.contextmanager
def innermost() -> Iterator[None]:
    """Lets stand-ins of linen layers take the arguments that other interceptors pass on.

    The interceptor that was added last is the one next to the layer, so whoever changes arguments
    by an interceptor enters this after it. Outside of `elementwise_norms` it changes nothing.
    """
    if _TRACED.get() is None:
        yield
        return
    own = object()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        acts = _ACTING.get() is own and context.method_name == "__call__"
        if not acts or not replaces(context.module):
            return call(*args, **kwargs)
        return called(context.module, call, *args, **kwargs)

    token = _ACTING.set(own)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _ACTING.reset(token)


def replaces(module: Any) -> bool:
    """Whether `called` has to run a module, linen or nnx, in place of its own call."""
    if _TRACED.get() is None:
        return False
    return _class_of(module, _ATTENTION) is not None or _is_norm(module)


def called(module: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a layer's stand-in.

    Args:
      module: layer for which `replaces` is true.
      call: its own call.
      *args: arguments of the call.
      **kwargs: keyword arguments of the call.

    Raises:
      InputError: if the layer is an attention layer of flax.
    """
    attention = _class_of(module, _ATTENTION)
    require(
        attention is None,
        f"{attention} in {_TRACED.get()}",
        "cannot be cut by width, because its size is part of the layer",
        "use models.build('transformer'), or a method without sub-networks by width",
    )
    # Nothing uses the values of the norm itself, only their dtype, so that it is not followed.
    y = call(*args, **kwargs)
    x = args[0] if args else kwargs["x"]
    if getattr(module, "feature_axes", -1) not in (-1, (-1,), x.ndim - 1, (x.ndim - 1,)):
        return y
    result = x.astype(y.dtype)
    for name, of in (("scale", jax.lax.mul), ("bias", jax.lax.add)):
        values = _parameter(module, name)
        if values is not None:
            spread = jax.lax.broadcast_in_dim(values, x.shape, (x.ndim - 1,))
            result = of(result, spread.astype(y.dtype))
    return result


def _parameter(module: Any, name: str) -> Any:
    if isinstance(module, nn.Module):
        return module.get_variable("params", name)
    variable = getattr(module, name, None)  # nnx.RMSNorm has no bias
    return None if variable is None else variable[...]


def _is_norm(module: Any) -> bool:
    own = isinstance(module, (norm.GroupNorm, norm.LayerNorm))
    return own or _class_of(module, _NORMS) is not None


def _class_of(module: Any, names: tuple[str, ...]) -> str | None:
    """The name of the class of flax among `names` of which a module is, or None."""
    for kind in type(module).__mro__:
        if kind.__name__ in names and kind.__module__.startswith("flax."):
            return kind.__name__
    return None
