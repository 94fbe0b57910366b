"""The number of clients trained side by side, and the number of parts of a mini-batch."""

import numpy as np

# A local step of this many FLOPs is enough to use a CPU's matrix units fully.
CPU_STEP_FLOPS = 2e7
# Bytes of all blocks' outputs for one part; activations inside blocks take several times as much.
CPU_PART_BYTES = 4.5e6
# Memory that stacked parameters, gradients and optimiser state may use on an accelerator.
ACCELERATOR_CHUNK_BYTES = 8e9


def choose_chunk(backend: str, step_flops: float, param_bytes: int) -> int:
    """Number of clients to train side by side, a power of two up to 256.

    On a CPU, large steps are fastest for one client at a time, with the activations in cache
    (McMahan CNN, batch 20: 174 GFLOP/s, but 112 vmapped over clients). Small steps are combined
    until they are large. Accelerators are fastest with as many clients as memory allows.

    Args:
      backend: name of the backend, `jax.default_backend()`.
      step_flops: FLOPs of one local step of one client on the full model.
      param_bytes: bytes of the model's parameters.
    """
    if backend == "cpu":
        side_by_side = CPU_STEP_FLOPS / max(step_flops, 1.0)
    else:
        side_by_side = ACCELERATOR_CHUNK_BYTES / max(4.0 * param_bytes, 1.0)
    return power_of_two(min(side_by_side, 256.0), up=False)


def choose_parts(backend: str, output_bytes: int, param_bytes: int, batch: int) -> int:
    """Number of parts in which a mini-batch runs through the model, a divisor of `batch`.

    On a CPU, a deep network's activations for a whole batch do not stay in cache between the
    forward and the backward pass (ResNet-20, batch of 20, two cores: two parts take 0.95 of the
    time of one, four parts gain nothing more). Every part reads all parameters and adds to their
    gradient, so wide shallow networks become slower (LEAF CNN: 0.78 ms in one part, 0.85 ms in
    two); their batches are not divided.

    Args:
      backend: name of the backend, `jax.default_backend()`.
      output_bytes: bytes of all blocks' outputs for one sample.
      param_bytes: bytes of the model's parameters.
      batch: samples per mini-batch.
    """
    if backend != "cpu":
        return 1
    divisors = (parts for parts in range(1, batch + 1) if batch % parts == 0)
    fitting = (parts for parts in divisors if output_bytes * batch <= parts * CPU_PART_BYTES)
    parts = next(fitting, 1)
    return parts if param_bytes * parts <= output_bytes * batch else 1


def power_of_two(value: float, *, up: bool) -> int:
    """The next power of two, up or down; at least 1."""
    exponent = np.log2(max(value, 1.0))
    return int(2 ** (np.ceil(exponent) if up else np.floor(exponent)))
