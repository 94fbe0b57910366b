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

from fedjax_het.common.errors import InputError
from fedjax_het.models import norm

# Classes of flax.linen and of flax.nnx by name: importing nnx takes a fifth of a second.
_NORMS = ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
_ATTENTION = ("MultiHeadAttention", "MultiHeadDotProductAttention")

# Description of the block that is traced inside `elementwise_norms`, else None.
_TRACED: contextvars.ContextVar[str | None] = contextvars.ContextVar("traced", default=None)


@contextlib.contextmanager
def elementwise_norms(where: str) -> Iterator[None]:
    """Inside, norms are traced as `x * scale + bias`, and attention layers of flax are refused.

    Args:
      where: description of the block that is traced, for errors.
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__" or not replaces(context.module):
            return call(*args, **kwargs)
        return called(context.module, call, *args, **kwargs)

    token = _TRACED.set(where)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _TRACED.reset(token)


def replaces(module: Any) -> bool:
    """Whether `called` has to run a module, linen or nnx, in place of its own call."""
    return _TRACED.get() is not None and (_is(module, _ATTENTION) or _is_norm(module))


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
    if _is(module, _ATTENTION):
        raise InputError(
            f"{type(module).__name__} in {_TRACED.get()}: cannot be cut by width, because its size "
            "is part of the layer; use models.build('transformer'), or a method without "
            "sub-networks by width"
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
    variable = getattr(module, name)
    return None if variable is None else variable[...]


def _is_norm(module: Any) -> bool:
    return isinstance(module, (norm.GroupNorm, norm.LayerNorm)) or _is(module, _NORMS)


def _is(module: Any, names: tuple[str, ...]) -> bool:
    """Whether a module is of one of these classes of flax, or of a class made of one."""
    kinds = type(module).__mro__
    return any(kind.__name__ in names and kind.__module__.startswith("flax.") for kind in kinds)
