"""Choice of the lowering of a convolution: forced, by a function of the run, or by a table.

The table is ordered by backend, dtype and shape and comes from measurements;
`benchmarks/micro/conv.py` prints the times of all lowerings. `fedjax_het.models.autotune` measures
on the current device instead.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from absl import logging

from fedjax_het.common.errors import require_known

Lowering = Literal["patches", "rows", "shift_add", "implicit", "direct", "onednn", "lax"]

# Window elements are unrolled; more than 7 x 7 take long to compile.
_IMPLICIT_WINDOW = 49
# NVIDIA GPUs have the necessary matrix units and shared memory from this compute capability on.
_IMPLICIT_CAPABILITY = 8.0
# With fewer input channels than this, the tiles of the GPU kernels are mostly empty.
_GPU_IMPLICIT_CHANNELS = 16
# In bfloat16 on a GPU, "rows" is faster than "patches" from this many contracted values per row on.
_GPU_BF16_ROWS_FROM = 48
# On a CPU, large patches cost more than the sum of a few long contractions.
_CPU_ROWS_WINDOW = 25
_CPU_ROWS_FROM = 80
# XLA's convolution on a CPU is the fastest if the channels fill its vectors (a multiple of the
# first number) and the window is large; and for small windows, if the channels in and out are at
# least the second pair and the image's sides at least the third number.
_CPU_DIRECT_MULTIPLE = 16
_CPU_DIRECT_CHANNELS = (32, 64)
_CPU_DIRECT_SIDE = 8
# On a CPU, "shift_add" is faster than "patches" with this many input channels, if at most this
# share of the computed rows belongs to the padding or is skipped by a stride.
_CPU_SHIFT_ADD_CHANNELS = range(4, 65)
_CPU_SHIFT_ADD_EXTRA_ROWS = 0.2
# More such rows are worth it for a large window, whose patches are many: 5x5 windows of 8 to 16
# channels at 14x14, the LEAF CNN at a quarter of its width, take 0.62 of the time of a step.
_CPU_SHIFT_ADD_EXTRA_ROWS_LARGE = 0.3


class Convolution(NamedTuple):
    """The properties of one client's convolution on which the choice of a lowering may depend.

    Attributes:
      dtype: dtype of the operands, e.g. `"float32"`.
      lhs: shape of the input, `(batch, *space, channels in)`.
      rhs: shape of the kernel, `(*window, channels in, channels out)`.
      strides: strides, one integer per spatial axis.
      padding: pairs (low, high), one per spatial axis.
      implicit: whether `"implicit"` supports it on this device.
      direct: whether `"direct"` supports it.
      onednn: whether `"onednn"` supports it on this device.
    """

    dtype: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    implicit: bool = False
    direct: bool = False
    onednn: bool = False

    def able(self, name: Lowering) -> bool:
        """Whether this lowering supports the convolution."""
        asked = {"implicit": self.implicit, "direct": self.direct, "onednn": self.onednn}
        return asked.get(name, True)

    @property
    def window(self) -> int:
        """Number of elements of the window."""
        return math.prod(self.rhs[:-2])

    @property
    def extra_rows(self) -> float:
        """Rows of the padded input per row of the output, minus one."""
        padded = self.lhs[1] + sum(self.padding[0])
        return padded / ((padded - self.rhs[0]) // self.strides[0] + 1) - 1.0


Chooser = Callable[[Convolution], Lowering]


class _Forced(NamedTuple):
    name: Lowering | None = None
    interpret: bool = False


_NOTHING = _Forced()
_forced: contextvars.ContextVar[_Forced] = contextvars.ContextVar("forced", default=_NOTHING)
_chooser: contextvars.ContextVar[Chooser | None] = contextvars.ContextVar("chooser", default=None)


@contextlib.contextmanager
def lowering(name: Lowering, *, interpret: bool = False) -> Iterator[None]:
    """Forces one lowering on every convolution that is traced inside, for comparisons.

    Compiled functions keep the lowering with which they were traced: jit a new function inside.

    Args:
      name: name of the lowering: `"patches"`, `"rows"`, `"shift_add"`, `"implicit"`, `"direct"`,
        `"onednn"` or `"lax"`.
      interpret: whether the kernels of `"implicit"` run in Pallas' interpreter, on any backend; for
        tests.
    """
    require_known(name, get_args(Lowering), "lowering")
    with _set(_forced, _Forced(name, interpret)):
        yield


def chosen_by(chooser: Chooser) -> contextlib.AbstractContextManager[None]:
    """Lets a function choose instead of the table, for convolutions that are traced inside."""
    return _set(_chooser, chooser)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def interpreted() -> bool:
    """Whether kernels that are traced now will run in the interpreter."""
    return _forced.get().interpret


def lowering_of(convolution: Convolution) -> Lowering:
    """The lowering of a convolution that is traced now."""
    forced, chooser = _forced.get().name, _chooser.get()
    if forced is not None and convolution.able(forced):
        return forced
    if chooser is not None and forced is None:
        return chooser(convolution)
    return choose(jax.default_backend(), convolution)


def choose(backend: str, convolution: Convolution) -> Lowering:
    """The fastest lowering by measurement (2-core CPU; NVIDIA H200 with 64-128 clients at once).

    Args:
      backend: name of the backend, `"cpu"`, `"gpu"` or `"tpu"`.
      convolution: convolution to compute.

    Returns:
      The name of the lowering.
    """
    channels = convolution.rhs[-2]
    row = convolution.rhs[-3] * channels
    if backend == "tpu":
        # The TPU's compiler batches convolutions over clients well without help.
        return "lax"
    if backend == "gpu":
        # A window of one element is a plain matmul; the vendor's library is the fastest for it.
        wide = convolution.window > 1 and channels >= _GPU_IMPLICIT_CHANNELS
        if convolution.implicit and wide:
            return "implicit"
        rows = convolution.dtype == "bfloat16" and row >= _GPU_BF16_ROWS_FROM
        return "rows" if rows else "patches"
    wide = convolution.window >= _CPU_ROWS_WINDOW
    large = wide and row >= _CPU_ROWS_FROM
    if convolution.direct and (large or _many_channels(convolution)) and _whole(convolution):
        return "direct"
    if large:
        return "rows"
    few_channels = channels in _CPU_SHIFT_ADD_CHANNELS
    extra_rows = _CPU_SHIFT_ADD_EXTRA_ROWS_LARGE if wide else _CPU_SHIFT_ADD_EXTRA_ROWS
    if few_channels and convolution.extra_rows <= extra_rows:
        return "shift_add"
    return "patches"


def _many_channels(convolution: Convolution) -> bool:
    enough = all(n >= least for n, least in zip(convolution.rhs[-2:], _CPU_DIRECT_CHANNELS))
    return enough and min(convolution.lhs[1:-1]) >= _CPU_DIRECT_SIDE


def _whole(convolution: Convolution) -> bool:
    """Whether the channels fill the float32 vectors of XLA's convolution on a CPU."""
    whole = all(n % _CPU_DIRECT_MULTIPLE == 0 for n in convolution.rhs[-2:])
    return whole and convolution.dtype == "float32"


def direct_fits(
    rhs: Any, strides: tuple[int, ...], precision: Any, preferred_element_type: Any
) -> bool:
    """Whether "direct" supports a convolution: strides of 1 and a window of several elements.

    Args:
      rhs: kernel, channels last.
      strides: strides, one integer per spatial axis.
      precision: precision of products, as in lax; must be None.
      preferred_element_type: dtype of the result, as in lax; must be None.
    """
    plain = precision is None and preferred_element_type is None
    return plain and max(strides) == 1 < max(rhs.shape[:-2])


def implicit_fits(lhs: Any, rhs: Any, precision: Any, preferred_element_type: Any) -> bool:
    """Whether "implicit" supports a convolution, on the default device unless interpreted.

    It needs two spatial axes, float32 or bfloat16, a window of at most 49 elements, and permission
    to multiply in TF32: neither the arguments nor JAX's configuration may ask for more precision.

    Args:
      lhs: input, channels last.
      rhs: kernel, channels last.
      precision: precision of products, as in lax.
      preferred_element_type: dtype of the result, as in lax.
    """
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    return (
        lhs.ndim == 4
        and lhs.dtype in (jnp.float32, jnp.bfloat16)
        and preferred_element_type in (None, lhs.dtype)
        and precision in (None, jax.lax.Precision.DEFAULT)
        and asked not in ("highest", "float32")
        and rhs.shape[0] * rhs.shape[1] <= _IMPLICIT_WINDOW
        and (interpreted() or device_fits())
    )


@functools.cache
def device_fits() -> bool:
    """Whether the default device runs the kernels of "implicit"; compiles a small one as a test."""
    if jax.default_backend() != "gpu":
        return False
    # On AMD GPUs the capability is a name such as gfx942.
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    numeric = capability.replace(".", "", 1).isdecimal()
    if not numeric or float(capability) < _IMPLICIT_CAPABILITY:
        return False
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 4, 4, 16), (2, 2, 16, 16)))
    try:
        # Imported here and not at the top, because JAX has announced that it will remove Triton
        # from Pallas, and the other lowerings must not fail then.
        from fedjax_het.models import implicit_gemm

        one = functools.partial(implicit_gemm.conv, strides=(1, 1), padding=((0, 0), (0, 0)))
        jax.jit(one).lower(x, w).compile()
    except Exception as error:
        logging.warning("convolutions are left to XLA, for Pallas cannot be had: %s", error)
        return False
    return True
