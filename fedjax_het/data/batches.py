"""Mini-batches inside the compiled program: which samples, in which order, as which numbers.

Nothing is stored per client but where its samples lie. The order of an epoch is a stateless
permutation (`fedjax_het.data.shuffle`), so training may resume at any step, and clients of
different sizes run side by side without padding their data.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.data.augment import crop_flip, cutout, draws
from fedjax_het.data.shuffle import permute

Array = jax.Array

# Samples per forward pass of an evaluation: few enough for a CPU's cache, many for an accelerator.
_CPU_PASS, _ACCELERATOR_PASS = 64, 1024

_FULL_SCALE = {"uint8": 255.0, "int16": 32768.0, "float32": 1.0}


class Pipeline(NamedTuple):
    """How stored samples become model inputs; hashable, so it may be a static argument.

    Attributes:
      mean, std: per channel, or one value for all; they apply after pixels are scaled to [0, 1] and
        16-bit audio to [-1, 1). Zero and one leave the scaled values as they are.
      augment: None; `"crop_flip"`: zero border of 4, random crop, random mirror; or
        `"crop_flip_cutout"`: also a random 16 x 16 hole.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: str | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceData:
    """Training samples and who holds them, as device arrays; the partition is a CSR index.

    Attributes:
      x: [N, ...] in storage dtype: uint8 pixels, int16 audio, float32 features or int32 tokens.
      y: int32[N] labels, or int32[N, T] for sequences.
      order: int32[N_used], sample ids grouped by client.
      start: int32[n], where each client's samples begin in `order`.
      count: int32[n], samples of each client (>= 1).
    """

    x: Array
    y: Array
    order: Array
    start: Array
    count: Array


class Batch(NamedTuple):
    """One mini-batch of one client.

    Attributes:
      x: float32[max_batch, ...] ready for the model, or int32[max_batch, T] tokens.
      y: int32[max_batch], or int32[max_batch, T].
      weight: float32[max_batch], 1 for a sample of the batch and 0 for padding; padded positions
        repeat real samples of the same client.
    """

    x: Array
    y: Array
    weight: Array


def steps_per_epoch(count: Array, batch: Array) -> Array:
    """int32: batches of `batch` that visit `count` samples once; the last may be smaller."""
    return (count + (batch - 1)) // batch


def prepare(x: Array | np.ndarray, spec: Pipeline) -> Array:
    """Stored samples as model inputs, without augmentation; for evaluation.

    Args:
      x: [..., C] in storage dtype; for one-value statistics any shape.
      spec: how samples become inputs.

    Returns:
      float32 of the same shape, `(x / full_scale - mean) / std`; int32 tokens as they are.
    """
    x = jnp.asarray(x)
    if x.dtype == jnp.int32:
        return x
    full_scale = _FULL_SCALE[x.dtype.name]
    offset = full_scale * np.asarray(spec.mean, np.float64)
    factor = 1.0 / (full_scale * np.asarray(spec.std, np.float64))

    def per_channel(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float32).reshape((1,) * (x.ndim - 1) + (-1,))

    # Subtract, then multiply: unlike a product plus an offset, this cannot be fused into an FMA in
    # one compiled program and not in another, so every execution sees the same bits.
    return (x.astype(jnp.float32) - per_channel(offset)) * per_channel(factor)


def in_batches(x: np.ndarray, y: np.ndarray) -> tuple[Array, Array]:
    """All samples on the device, cut into batches for evaluation: `[m, b, ...]` both.

    The last batch is filled up with samples from the beginning, which the caller leaves out.
    """
    count = len(y)
    batch = min(count, _CPU_PASS if jax.default_backend() == "cpu" else _ACCELERATOR_PASS)
    places = np.arange(-(-count // batch) * batch) % count
    cut = (-1, batch)
    return (
        jnp.asarray(x[places].reshape(*cut, *x.shape[1:])),
        jnp.asarray(y[places].reshape(*cut, *y.shape[1:])),
    )


def gather(
    data: DeviceData,
    spec: Pipeline,
    client: Array,
    step: Array,
    batch: Array,
    max_batch: int,
    key: Array,
) -> Batch:
    """Mini-batch number `step` of one client; pure, traceable, and made for `vmap` over clients.

    With n samples and batches of b an epoch has ceil(n / b) steps and visits every sample once; its
    last batch is smaller when b does not divide n. Every epoch has its own order. The result at the
    first b positions does not depend on `max_batch`.

    Args:
      data: the federated data set on device.
      spec: how samples become inputs (static).
      client: int32 scalar, client id.
      step: int32 scalar, local step, counted from 0 across epochs.
      batch: int32 scalar, samples per mini-batch, `1 <= batch <= max_batch`.
      max_batch: width of the result (static).
      key: typed PRNG key of this client's order and augmentation, the same at all its steps and
        used for nothing else.

    Returns:
      The `Batch`.
    """
    count = data.count[client]
    per_epoch = steps_per_epoch(count, batch)
    epoch = step // per_epoch
    slot = jnp.arange(max_batch, dtype=jnp.int32)
    position = (step - epoch * per_epoch) * batch + slot
    weight = ((slot < batch) & (position < count)).astype(jnp.float32)
    order_key, augment_key = jax.random.split(key)
    # The barrier keeps the shuffle's rounds out of the gathers' index computation, into which some
    # compilers would copy them over and over (minutes of compiling with JAX 0.12).
    place = jax.lax.optimization_barrier(
        permute(position % count, count, jax.random.fold_in(order_key, epoch))
    )
    sample = data.order.at[data.start[client] + place].get(mode="promise_in_bounds")
    y = data.y.at[sample].get(mode="promise_in_bounds")
    if spec.augment is None:
        x = data.x.at[sample].get(mode="promise_in_bounds")
        return Batch(prepare(x, spec), y, weight)
    shift_draw, hole_draw = draws(jax.random.fold_in(augment_key, step), max_batch)
    x = prepare(crop_flip(data.x, sample, shift_draw), spec)
    if spec.augment == "crop_flip_cutout":
        x = cutout(x, hole_draw)
    return Batch(x, y, weight)
