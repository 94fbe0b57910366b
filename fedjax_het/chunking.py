"""How many clients to train side by side."""

import numpy as np

# A local step of this many FLOPs keeps a CPU's matrix units busy on its own.
CPU_STEP_FLOPS = 2e7
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


def power_of_two(value: float, *, up: bool) -> int:
    """The next power of two, up or down; at least 1."""
    exponent = np.log2(max(value, 1.0))
    return int(2 ** (np.ceil(exponent) if up else np.floor(exponent)))
