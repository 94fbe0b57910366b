"""Mini-batches inside the compiled program: choice of samples, their order, and normalisation.

Only the positions of a client's samples are stored per client. The order of an epoch is a stateless
permutation (`fedjax_het.data.shuffle`), so training may resume at any step, and clients of
different sizes run side by side without padding their data.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.data.augment import crop_flip, cutout, draws
from fedjax_het.data.shuffle import permute

Array = jax.Array

# Samples per forward pass of an evaluation: few for a CPU, to fit in its cache; many for an
# accelerator.
_CPU_PASS, _ACCELERATOR_PASS = 64, 1024

_FULL_SCALE = {"uint8": 255.0, "int16": 32768.0, "float32": 1.0}


class Pipeline(NamedTuple):
    """How stored samples become model inputs; hashable, so it may be a static argument.

    Attributes:
      mean, std: mean and standard deviation per channel, or one value for all. They apply after
        pixels are scaled to [0, 1] and 16-bit audio to [-1, 1). Mean 0 and std 1 change nothing.
      augment: name of the augmentation, or None. `"crop_flip"` adds a zero border of 4, crops at
        random and mirrors at random; `"crop_flip_cutout"` also zeroes a random 16 x 16 square.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: str | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceData:
    """Training samples and their partition as device arrays; the partition is a CSR index.

    Attributes:
      x: inputs, [N, ...] in storage dtype: uint8 pixels, int16 audio, float32 features, int32
        tokens or bool masks; or a dictionary or tuple of such arrays.
      y: labels, int32 or float32 [N, ...].
      order: sample ids grouped by client, int32[N_used].
      start: position in `order` of each client's first sample, int32[n].
      count: number of samples of each client (>= 1), int32[n].
      streamed: whether `x`, `y` and `order` hold the samples of some clients only, one after the
        other, each with its `start`; row i is then the sample `order[i]`.
    """

    x: PyTree
    y: Array
    order: Array
    start: Array
    count: Array
    streamed: bool = field(default=False, metadata={"static": True})

    def rows(self, place: Array) -> tuple[Array, Array]:
        """The rows of `x` and `y`, and the sample ids, at these positions in `order`, int32."""
        sample = self.order.at[place].get(mode="promise_in_bounds")
        return place if self.streamed else sample, sample


class Batch(NamedTuple):
    """One mini-batch of one client.

    Attributes:
      x: model inputs, float32[max_batch, ...], int32 tokens or bool masks; or a dictionary or tuple
        of such arrays.
      y: labels, int32 or float32 [max_batch, ...].
      weight: weight of each position, float32[max_batch]: 1 for a sample of the batch and 0 for
        padding. Padded positions repeat real samples of the same client.
      sample: ids of the samples, int32[max_batch].
    """

    x: PyTree
    y: Array
    weight: Array
    sample: Array


def steps_per_epoch(count: Array, batch: Array) -> Array:
    """Number of batches of size `batch` in one pass over `count` samples, int32, rounded up."""
    return (count + (batch - 1)) // batch


def prepare(x: PyTree, spec: Pipeline) -> PyTree:
    """Turns stored samples into model inputs without augmentation, for evaluation.

    Args:
      x: samples, [..., C] in storage dtype, or a pytree of them; any shape if mean and std are
        single values.
      spec: preprocessing of the samples; its `augment` is ignored.

    Returns:
      Inputs of the same shape, float32 `(x / full_scale - mean) / std`; int32 tokens and bool masks
      unchanged.
    """
    return jax.tree.map(lambda a: _prepare(jnp.asarray(a), spec), x)


def _prepare(x: Array, spec: Pipeline) -> Array:
    if x.dtype in (jnp.int32, jnp.bool_):
        return x
    full_scale = _FULL_SCALE[x.dtype.name]
    offset = full_scale * np.asarray(spec.mean, np.float64)
    factor = 1.0 / (full_scale * np.asarray(spec.std, np.float64))

    def per_channel(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float32).reshape((1,) * (x.ndim - 1) + (-1,))

    # Subtracting first, then multiplying, cannot be fused into an FMA. A product plus an offset
    # could be fused in one compiled program and not in another, and the bits would differ.
    return (x.astype(jnp.float32) - per_channel(offset)) * per_channel(factor)


def in_batches(x: PyTree, y: np.ndarray) -> Batch:
    """Copies all samples to the device, cut into batches for evaluation, all fields `[m, b, ...]`.

    The last batch is filled with samples from the beginning, whose weight is 0. `x` stays in
    storage dtype, see `prepare`.
    """
    count = len(y)
    batch = min(count, _CPU_PASS if jax.default_backend() == "cpu" else _ACCELERATOR_PASS)
    position = np.arange(-(-count // batch) * batch)
    places = position % count

    def cut(a: np.ndarray) -> Array:
        # `jnp.asarray` would compile a program for every shape.
        return jax.device_put(a.reshape(-1, batch, *a.shape[1:]))

    return Batch(
        x=jax.tree.map(lambda a: cut(a[places]), x),
        y=cut(y[places]),
        weight=cut((position < count).astype(np.float32)),
        sample=cut(places.astype(np.int32)),
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
    """Mini-batch number `step` of one client; pure, traceable, and suited to `vmap` over clients.

    With n samples and batches of b an epoch has ceil(n / b) steps and visits every sample once; its
    last batch is smaller when b does not divide n. Every epoch has its own order. The result at the
    first b positions does not depend on `max_batch`.

    Args:
      data: federated data set on the device.
      spec: preprocessing of the samples (static).
      client: client id, int32 scalar.
      step: number of the local step, counted from 0 across epochs, int32 scalar.
      batch: samples per mini-batch, int32 scalar, `1 <= batch <= max_batch`.
      max_batch: width of the result (static).
      key: typed PRNG key of this client's order and augmentation; the same at all its steps, and
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
    # Without the barrier, some compilers copy the steps of the shuffle many times into the index
    # computation of the gathers, which takes minutes to compile with JAX 0.12.
    place = jax.lax.optimization_barrier(
        permute(position % count, count, jax.random.fold_in(order_key, epoch))
    )
    row, sample = data.rows(data.start[client] + place)
    y = data.y.at[row].get(mode="promise_in_bounds")
    if spec.augment is None:
        x = jax.tree.map(lambda a: a.at[row].get(mode="promise_in_bounds"), data.x)
        return Batch(prepare(x, spec), y, weight, sample)
    shift_draw, hole_draw = draws(jax.random.fold_in(augment_key, step), max_batch)
    x = prepare(crop_flip(data.x, row, shift_draw), spec)
    if spec.augment == "crop_flip_cutout":
        x = cutout(x, hole_draw)
    return Batch(x, y, weight, sample)
