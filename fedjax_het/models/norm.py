"""Normalisation between the layers of the models.

Group and batch norm reduce over space channel by channel, in one pass for both moments, and apply
one multiply-add. A group norm that reduces over the grouped shape took three times as long to train
on a CPU.
"""

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree

Array = jax.Array
Norm = Literal["group", "batch", "none"]

# Groups of a group norm, if that many divide the channels; a power of two.
_GROUPS = 8


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, 2018): zero mean and unit variance per sample and group.

    Attributes:
      groups: number of groups of adjacent channels, which must divide the number of channels; None
        for at most 8, as many as divide the channels.
      eps: small number added to the variance.
    """

    groups: int | None = None
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, live: Array | None = None) -> Array:
        """Normalised `x`, same shape `[batch, ..., channels]`.

        Args:
          x: values `[batch, ..., channels]`.
          live: number of channels, int32[], that form the groups; the others become zero. None for
            all channels.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        if live is not None:
            return live_group_norm(x, scale, bias, self.groups, self.eps, live)
        groups = math.gcd(channels, _GROUPS) if self.groups is None else self.groups

        def over_group(moment: Array) -> Array:
            grouped = moment.reshape(-1, groups, channels // groups)
            return jnp.repeat(jnp.mean(grouped, -1), channels // groups, axis=-1)

        first, second = _moments(x, tuple(range(1, x.ndim - 1)))
        mean = over_group(first)
        var = jnp.maximum(over_group(second) - jnp.square(mean), 0.0)
        gain = jax.lax.rsqrt(var + self.eps) * scale.astype(jnp.float32)[None]
        return _affine(x, gain, bias.astype(jnp.float32)[None] - mean * gain)


def live_group_norm(
    x: Array, scale: Array | None, bias: Array | None, groups: int | None, eps: float, live: Array
) -> Array:
    """Group normalisation of the first channels; the other channels become zero.

    Args:
      x: values `[batch, ..., channels]`.
      scale: factor of every channel, `[channels]`, or None.
      bias: summand of every channel, `[channels]`, or None.
      groups: number of groups, which must divide `live`; None as in `GroupNorm`.
      eps: small number added to the variance.
      live: number of channels that form the groups, int32[], may be traced.

    Returns:
      Normalised `x`, same shape and dtype.
    """
    channels = x.shape[-1]
    # The lowest bit is the largest power of two that divides a number.
    number = jnp.minimum(live & -live, _GROUPS) if groups is None else jnp.int32(groups)
    place = jnp.arange(channels, dtype=jnp.int32)
    inside = (place < live)[None]
    slots = jnp.arange(_GROUPS if groups is None else groups, dtype=jnp.int32)
    member = ((place // (live // number))[:, None] == slots[None]) & inside.T
    member = member.astype(jnp.float32)
    share = number.astype(jnp.float32) / live.astype(jnp.float32)

    def over_group(moment: Array) -> Array:
        exact = jax.lax.Precision.HIGHEST
        mean = jnp.matmul(moment, member, precision=exact) * share
        return jnp.matmul(mean, member.T, precision=exact)

    first, second = _moments(x, tuple(range(1, x.ndim - 1)))
    mean = over_group(first)
    gain = jax.lax.rsqrt(jnp.maximum(over_group(second) - jnp.square(mean), 0.0) + eps)
    if scale is not None:
        gain = gain * scale.astype(jnp.float32)[None]
    gain = jnp.where(inside, gain, 0.0)
    shift = -mean * gain
    if bias is not None:
        shift = shift + jnp.where(inside, bias.astype(jnp.float32)[None], 0.0)
    return _affine(x, gain, shift)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016): zero mean and unit variance per position.

    The layer of flax mixes dtypes if the input is not float32.

    Attributes:
      eps: small number added to the variance; the default is that of flax.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalised `x`, same shape `[..., channels]`.

        Args:
          x: values `[..., channels]`.
          mask: whether a channel enters the moments, bool of the rank of `x` with axes of length 1
            before the last; None for all channels.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        wide = x.astype(jnp.float32).reshape(-1, channels)
        where = None if mask is None else mask.reshape(1, channels)
        mean = jnp.mean(wide, axis=-1, keepdims=True, where=where)
        var = jnp.mean(jnp.square(wide), axis=-1, keepdims=True, where=where) - jnp.square(mean)
        gain = jax.lax.rsqrt(jnp.maximum(var, 0.0) + self.eps) * scale.astype(jnp.float32)[None]
        y = (wide - mean) * gain + bias.astype(jnp.float32)[None]
        return y.astype(x.dtype).reshape(x.shape)


class BatchNorm(nn.Module):
    """Batch normalisation whose mode may be chosen per client inside one program.

        train: y = (x - m) / sqrt(v + eps) * scale + bias,  m, v = moments of the n real values,
               mean <- (1 - momentum) mean + momentum m,    var likewise with n / (n - 1) v
        eval:  the same with m, v = mean, var

    Attributes:
      momentum: weight of the new batch; 0.1 as in the reference networks.
      eps: small number added to the variance.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array, mask: Array | None = None) -> Array:
        """Normalises over all axes but the last.

        Args:
          x: values `[batch, ..., channels]`.
          train: whether the moments are those of `x`; may be a traced `bool[]`.
          mask: `bool[batch, 1, ...]` or None, whether a sample is real and enters the moments.

        Returns:
          Normalised `x`, same shape and dtype.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        # `is not False`, because a traced flag has no truth value.
        if train is not False:
            first, second = _moments(x, tuple(range(x.ndim - 1)), mask)
            spread = jnp.maximum(second - jnp.square(first), 0.0)
            real = x.shape[0] if mask is None else jnp.sum(mask, dtype=jnp.float32)
            count = real * math.prod(x.shape[1:-1])
            unbiased = spread * (count / jnp.maximum(count - 1, 1))
            running_mean.value = self._blend(mean, first, train)
            running_var.value = self._blend(var, unbiased, train)
            mean, var = jnp.where(train, first, mean), jnp.where(train, spread, var)
        gain = jax.lax.rsqrt(var + self.eps) * scale.astype(jnp.float32)
        return _affine(x, gain[None], (bias.astype(jnp.float32) - mean * gain)[None])

    def _blend(self, old: Array, new: Array, train: bool | Array) -> Array:
        blended = (1.0 - self.momentum) * old + self.momentum * jax.lax.stop_gradient(new)
        return jnp.where(train, blended, old)


def over_real(weight: Array | None) -> AbstractContextManager[None]:
    """Inside, batch norms that are called without a mask take the moments of real samples only.

    It holds for `BatchNorm` and for `nn.BatchNorm`; the first axis of their input is the batch.

    Args:
      weight: weight of each sample, float32[batch], 0 for padding; None changes nothing.

    Returns:
      The context.
    """
    if weight is None:
        return contextlib.nullcontext()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        called = context.method_name == "__call__"
        if called and isinstance(context.module, (BatchNorm, nn.BatchNorm)):
            kwargs = masked(weight, args, kwargs)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def masked(weight: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a batch norm's call, with the mask of real samples unless it has one.

    The mask is all True if no sample is real.

    Args:
      weight: weight of each sample, float32[batch], 0 for padding.
      args: positional arguments of the call, or none with `x` as a keyword.
      kwargs: keyword arguments of the call.

    Returns:
      The keyword arguments.

    Raises:
      InputError: if the first axis of the input is not the batch, so that nothing tells which rows
        are padding.
    """
    x = args[0] if args else kwargs["x"]
    if kwargs.get("mask") is not None:
        return kwargs
    require(
        x.shape[:1] == weight.shape,
        f"batch norm of {list(x.shape)} in a batch of {len(weight)} samples",
        "must have the samples on its first axis, or padding enters its moments",
        "keep the axes apart, moments are taken over all but the last; or pass mask=",
    )
    real = weight > 0
    rows = (real | ~jnp.any(real)).reshape(-1, *(1,) * (x.ndim - 1))
    return {**kwargs, "mask": rows}


def updated(old: PyTree, new: PyTree, weight: Array | None) -> PyTree:
    """The statistics after a step: `new`, or `old` if no sample is real; `weight` as above."""
    if weight is None:
        return new
    return jax.tree.map(lambda a, b: jnp.where(jnp.any(weight > 0), b, a), old, new)


def _moments(x: Array, axes: tuple[int, ...], mask: Array | None = None) -> tuple[Array, Array]:
    """Mean and mean square over `axes` where `mask` holds, float32."""
    x = x.astype(jnp.float32)
    return jnp.mean(x, axes, where=mask), jnp.mean(jnp.square(x), axes, where=mask)


def _affine(x: Array, gain: Array, shift: Array) -> Array:
    """`x * gain + shift`, computed in float32; `gain` and `shift` are `[batch or 1, channels]`."""

    def spread(a: Array) -> Array:
        return a.reshape(a.shape[0], *(1,) * (x.ndim - 2), a.shape[1])

    return (x.astype(jnp.float32) * spread(gain) + spread(shift)).astype(x.dtype)


class Normalize(nn.Module):
    """The norm named by `kind`.

    Group normalisation is the default of every model here: its statistics depend on one sample
    only, so no statistics of a client's batches need to be merged, frozen or sent.

    Attributes:
      kind: name of the norm: `"group"` (at most 8 groups, as many as divide the channels),
        `"batch"` or `"none"`.
    """

    kind: Norm = "group"

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """Normalised `x`, same shape `[batch, ..., channels]`."""
        if self.kind == "batch":
            return BatchNorm(name="batch_norm")(x, train=train)
        if self.kind == "group":
            return GroupNorm(name="group_norm")(x)
        return x
