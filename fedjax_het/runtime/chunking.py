"""How many clients to train side by side, and in how many parts a mini-batch."""

import numpy as np

# A local step of this many FLOPs keeps a CPU's matrix units busy on its own.
CPU_STEP_FLOPS = 2e7
# Block outputs of a part of a mini-batch; what lies between blocks is several times as much.
CPU_PART_BYTES = 4.5e6
# Memory that stacked parameters, gradients and optimiser state may take on an accelerator.
ACCELERATOR_CHUNK_BYTES = 8e9


def choose_chunk(backend: str, step_flops: float, param_bytes: int) -> int:
    """How many clients to train side by side, a power of two up to 256.

    On a CPU a large step runs fastest alone, with its activations in cache (McMahan CNN, batch 20:
    174 GFLOP/s alone, 112 vmapped); smaller steps are batched until they are large. Accelerators
    want as many clients as memory allows.

    Args:
      backend: `jax.default_backend()`.
      step_flops: FLOPs of one local step of one client on the full model.
      param_bytes: bytes of the model's parameters.
    """
    if backend == "cpu":
        side_by_side = CPU_STEP_FLOPS / max(step_flops, 1.0)
    else:
        side_by_side = ACCELERATOR_CHUNK_BYTES / max(4.0 * param_bytes, 1.0)
    return power_of_two(min(side_by_side, 256.0), up=False)


def choose_parts(backend: str, output_bytes: int, param_bytes: int, batch: int) -> int:
    """In how many parts to run a mini-batch through the model, a divisor of `batch`.

    On a CPU a deep network's activations leave the cache between the forward and the backward
    pass of a whole batch (ResNet-20, batch of 20, two cores: 0.95 of the time of the whole in two
    parts, no gain in four).
    Every part reads all parameters and adds to their gradient, so that wide shallow networks lose
    (LEAF CNN: 0.78 ms whole, 0.85 halved); they stay whole.

    Args:
      backend: `jax.default_backend()`.
      output_bytes: of all blocks' outputs for one sample.
      param_bytes: of the model.
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
