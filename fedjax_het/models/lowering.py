"""Which way to write a convolution: forced, chosen by a function of the run, or by a table.

The table is by backend, dtype and shape, from measurements (`benchmarks/micro/conv.py` prints the
lowerings side by side). `fedjax_het.autotune` measures on the device at hand instead.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax

from fedjax_het.errors import require_known

Lowering = Literal["patches", "rows", "shift_add", "implicit", "lax"]

# The GPU's own kernels want this many channels in; with fewer their tiles are mostly empty.
_GPU_IMPLICIT_CHANNELS = 16
# bf16 on a GPU: from this many contracted values a row the sum of matmuls beats the concatenation.
_GPU_BF16_ROWS_FROM = 48
# On a CPU large patches cost more than the sum of a few long contractions.
_CPU_ROWS_WINDOW = 25
_CPU_ROWS_FROM = 80
# A CPU adds shifted products where they are few against the patches they save: with this many
# channels in, and at most this share of rows computed for the padding or skipped by a stride.
_CPU_SHIFT_ADD_CHANNELS = range(4, 65)
_CPU_SHIFT_ADD_EXTRA_ROWS = 0.2


class Convolution(NamedTuple):
    """One convolution as a client runs it; what a choice between lowerings may depend on.

    Attributes:
      dtype: of the operands, e.g. `"float32"`.
      lhs: `(batch, *space, channels in)`.
      rhs: `(*window, channels in, channels out)`.
      strides: one integer a spatial axis.
      padding: pairs (low, high), one a spatial axis.
      implicit: whether `"implicit"` can do it on this device.
    """

    dtype: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    implicit: bool = False

    @property
    def window(self) -> int:
        """Elements of the window."""
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

    What was compiled before keeps the lowering it was traced with: jit a fresh function inside.

    Args:
      name: `"patches"`, `"rows"`, `"shift_add"`, `"implicit"` or `"lax"`.
      interpret: runs the kernels of `"implicit"` in Pallas' interpreter, on any backend: for tests.
    """
    require_known(name, get_args(Lowering), "lowering")
    with _set(_forced, _Forced(name, interpret)):
        yield


def chosen_by(chooser: Chooser) -> contextlib.AbstractContextManager[None]:
    """Lets a function choose, in place of the table, for what is traced inside and not forced."""
    return _set(_chooser, chooser)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def interpreted() -> bool:
    """Whether kernels that are traced here are to run in the interpreter."""
    return _forced.get().interpret


def lowering_of(convolution: Convolution) -> Lowering:
    """The lowering of a convolution that is traced here."""
    forced, chooser = _forced.get().name, _chooser.get()
    if forced is not None and (forced != "implicit" or convolution.implicit):
        return forced
    if chooser is not None and forced is None:
        return chooser(convolution)
    return choose(jax.default_backend(), convolution)


def choose(backend: str, convolution: Convolution) -> Lowering:
    """The fastest lowering by measurement (2-core CPU; NVIDIA H200 with 64-128 clients at once).

    Args:
      backend: `"cpu"`, `"gpu"` or `"tpu"`.
      convolution: what is to be done.

    Returns:
      The name of the lowering.
    """
    channels = convolution.rhs[-2]
    row = convolution.rhs[-3] * channels
    if backend == "tpu":
        # The TPU's compiler batches convolutions over clients well by itself.
        return "lax"
    if backend == "gpu":
        # A window of one element is a plain matmul, which the vendor's library does best.
        wide = convolution.window > 1 and channels >= _GPU_IMPLICIT_CHANNELS
        if convolution.implicit and wide:
            return "implicit"
        rows = convolution.dtype == "bfloat16" and row >= _GPU_BF16_ROWS_FROM
        return "rows" if rows else "patches"
    if convolution.window >= _CPU_ROWS_WINDOW and row >= _CPU_ROWS_FROM:
        return "rows"
    few_channels = channels in _CPU_SHIFT_ADD_CHANNELS
    if few_channels and convolution.extra_rows <= _CPU_SHIFT_ADD_EXTRA_ROWS:
        return "shift_add"
    return "patches"
