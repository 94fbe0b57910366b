"""Choice of the lowerings of convolutions by measuring them once on the current device.

A *verdict* is the lowering that was measured to be the fastest for a convolution. While a training
program is traced, the verdict of each convolution is looked up by (JAX, device, dtype, clients side
by side, shapes, strides, padding). If there is none, it is measured: every lowering that supports
the convolution runs forward and backward inside a loop, as in training. Verdicts are kept in a JSON
file beside the compiled programs (`compilation_cache`), so the next process need not measure.

Lowerings differ in rounding, so verdicts must not change during a run. They stay the same within a
process. A run saves the verdicts that it used with its checkpoint, and when it resumes it restores
them before anything is compiled, even if the file has changed. Verdicts in the file are never
measured again.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import WriteError, refusing, write_json
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import Convolution, Lowering, chosen_by, lowering
from fedjax_het.runtime import compilation_cache
from fedjax_het.runtime.compiling import compiler_options

# Format number of the file; versions with another number ignore the file.
_FORMAT = 2
# Candidates run in turn, each for about this long. The shortest of the repeats counts, because
# other work on the machine can only add time.
_RUN_S = 0.02
_REPEATS = 5
_MOST_STEPS = 100


def file() -> Path | None:
    """File in which verdicts are kept between processes; None if nothing is kept."""
    store = compilation_cache.store()
    return None if store is None else store.with_name(f"{store.name}-convolutions.json")


class Tuner:
    """Verdicts of one run; shared by all its programs.

    Args:
      path: path of the file; None keeps nothing between processes.

    Attributes:
      used: verdicts that this run has used so far, a dictionary from key to lowering.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.used: dict[str, Lowering] = {}

    def __call__(self, convolution: Convolution, clients: int) -> Lowering:
        """The lowering of a convolution that `clients` clients compute side by side."""
        able = candidates(convolution, clients)
        if len(able) == 1:
            return able[0]
        key = key_of(convolution, clients)
        if key not in self.used:
            self.used[key] = self._kept(convolution, clients, key) or self._measured(
                convolution, clients, key
            )
        return self.used[key]

    def _kept(self, convolution: Convolution, clients: int, key: str) -> Lowering | None:
        """The verdict in the file, or None if there is none or the device does not support it."""
        verdict = _read(self._path).get(key)
        name = verdict.get("lowering") if isinstance(verdict, dict) else None
        return name if name in candidates(convolution, clients) else None

    def _measured(self, convolution: Convolution, clients: int, key: str) -> Lowering:
        times = measure(convolution, clients)
        best = min(times, key=times.__getitem__)
        verdict = {"lowering": best, "step_us": {name: 1e6 * s for name, s in times.items()}}
        logging.info("convolution %s: %s", key, verdict)
        if self._path is not None:
            # Read again, because other processes also add to the file.
            verdicts = {**_read(self._path), key: verdict}
            try:
                with refusing(str(self._path)):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {"format": _FORMAT, "verdicts": verdicts})
            except WriteError as error:
                logging.warning("%s", error)
        return best


def _read(path: Path | None) -> dict[str, Any]:
    """The verdicts in a file; if it has another format, an empty dictionary and a warning."""
    if path is None or not path.exists():
        return {}
    try:
        content = read_json(path)
    except InputError as error:
        logging.warning("%s", error)
        return {}
    whole = isinstance(content, dict) and content.get("format") == _FORMAT
    verdicts = content.get("verdicts") if whole else None
    if not isinstance(verdicts, dict):
        logging.warning("%s: is not a file of verdicts; it is written anew", path)
        return {}
    return verdicts


@contextlib.contextmanager
def choosing(tuner: Tuner | None, clients: int) -> Iterator[None]:
    """Lets a tuner choose the lowering of convolutions that are traced inside.

    Args:
      tuner: tuner of the run; None leaves the choice to the table.
      clients: number of clients side by side.
    """
    if tuner is None:
        yield
        return
    with chosen_by(functools.partial(tuner, clients=clients)):
        yield


def key_of(convolution: Convolution, clients: int) -> str:
    """The key of a verdict; it must not change while `_FORMAT` stays the same."""
    device = jax.devices()[0]
    dtype, lhs, rhs, strides, padding, implicit, direct, onednn = convolution
    return (
        f"jax {jax.__version__}, {device.platform}: {device.device_kind}, {clients} x {dtype} "
        f"{_list(lhs)} * {_list(rhs)}, strides {_list(strides)}, "
        f"padding {_list(sum(padding, ()))}{', implicit' * implicit}{', direct' * direct}"
        f"{', onednn' * (onednn and clients == 1)}"
    )


def _list(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def candidates(convolution: Convolution, clients: int) -> tuple[Lowering, ...]:
    """The lowerings to measure for clients side by side; they are the same for equal keys.

    "lax" is not measured on a CPU: inside a loop it is ten times slower than the others, so that
    measuring it would take as long as training.
    """
    found: list[Lowering] = ["patches"]
    if convolution.window > 1:
        found += ["rows", "shift_add"]
    if convolution.implicit:
        found.append("implicit")
    if convolution.direct and jax.default_backend() == "cpu":
        found.append("direct")
    if convolution.onednn and clients == 1:
        found.append("onednn")
    if jax.default_backend() != "cpu":
        found.append("lax")
    return tuple(name for name in get_args(Lowering) if name in found)


def measure(convolution: Convolution, clients: int) -> dict[Lowering, float]:
    """Seconds of a forward and backward pass of all clients, by lowering.

    A lowering that fails on this device is left out with a warning. This function may be called
    while another function is traced.

    Raises:
      RuntimeError: if no lowering runs on this device.
    """
    times: dict[Lowering, float] = {}
    with jax.ensure_compile_time_eval():
        arrays = _operands(convolution, clients)
        programs = {}
        for name in candidates(convolution, clients):
            try:
                with lowering(name):
                    lowered = jax.jit(_steps(convolution, clients)).lower(1, *arrays)
                options = compiler_options() if clients == 1 else {}
                run = lowered.compile(compiler_options=options)
                jax.block_until_ready(run(1, *arrays))
                programs[name] = run
                times[name] = _seconds(run, 1, arrays)
            except Exception as error:
                logging.warning("lowering %s of %s fails here: %s", name, convolution, error)
        if not times:
            raise RuntimeError(f"no lowering of {convolution} runs on this device")
        count = int(np.clip(_RUN_S / min(times.values()), 1, _MOST_STEPS))
        for _ in range(_REPEATS):
            for name, run in programs.items():
                times[name] = min(times[name], _seconds(run, count, arrays))
    return times


def _operands(convolution: Convolution, clients: int) -> tuple[jax.Array, jax.Array]:
    """Random operands, with a leading axis for clients side by side."""
    rng = np.random.default_rng(0)
    side = (clients,) if clients > 1 else ()
    lhs, rhs = (
        jnp.asarray(0.1 * rng.standard_normal(side + shape, np.float32), convolution.dtype)
        for shape in (convolution.lhs, convolution.rhs)
    )
    return rhs, lhs


def _steps(convolution: Convolution, clients: int) -> Any:
    """A function `(count, kernel, x) -> (kernel, x)` of `count` steps on the squared output."""
    spatial = "HWD"[: len(convolution.strides)]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def step(kernel: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def call(kernel: jax.Array, x: jax.Array) -> jax.Array:
            strides, padding = convolution.strides, convolution.padding
            return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

        y, pullback = jax.vjp(call, kernel, x)
        return jax.tree.map(lambda a, g: a - 1e-6 * g, (kernel, x), pullback(y))

    every = jax.vmap(step) if clients > 1 else step

    def run(count: jax.Array, kernel: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.fori_loop(0, count, lambda _, pair: every(*pair), (kernel, x))

    return run


def _seconds(run: Any, count: int, arrays: tuple[jax.Array, jax.Array]) -> float:
    """Wall time of one step of a loop of `count` steps, in seconds."""
    began = time.perf_counter()
    jax.block_until_ready(run(count, *arrays))
    return (time.perf_counter() - began) / count
