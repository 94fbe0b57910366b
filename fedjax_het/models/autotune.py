"""Lowerings of convolutions by measurement on the device at hand, once; the verdicts are kept.

A convolution that is met while a training program is traced is looked up by (JAX, device, dtype,
clients side by side, shapes, strides, padding). What is not known is timed: every lowering that can
do it runs forward and backward inside a loop, as training does. Verdicts lie in a JSON file beside
the compiled programs (`compilation_cache`), so that the next process does not measure.

Lowerings differ in rounding, so a run must not change its mind. Within a process a verdict stands;
a run saves those it used with its checkpoint and takes them up again before anything is compiled,
whatever the file says by then. A verdict that is in the file is never measured again.
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
from fedjax_het.common.jsonio import read_json, write_json
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import Convolution, Lowering, chosen_by, lowering
from fedjax_het.runtime import compilation_cache
from fedjax_het.runtime.compiling import compiler_options

# Of the file; another number makes it unreadable to earlier versions.
_FORMAT = 2
# Candidates run in turn, for about so long each; the shortest of the repeats counts, for what else
# the machine does only adds.
_RUN_S = 0.02
_REPEATS = 5
_MOST_STEPS = 100


def file() -> Path | None:
    """Where verdicts are kept between processes; None if nothing is."""
    store = compilation_cache.store()
    return None if store is None else store.with_name(f"{store.name}-convolutions.json")


class Tuner:
    """Verdicts of one run; shared by all its programs.

    Args:
      path: of the file; None keeps nothing between processes.

    Attributes:
      used: key -> lowering, what this run has been told so far.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.used: dict[str, Lowering] = {}

    def __call__(self, convolution: Convolution, clients: int) -> Lowering:
        """The lowering of a convolution that `clients` clients do side by side."""
        able = candidates(convolution)
        if len(able) == 1:
            return able[0]
        key = key_of(convolution, clients)
        if key not in self.used:
            self.used[key] = self._kept(convolution, key) or self._measured(
                convolution, clients, key
            )
        return self.used[key]

    def _kept(self, convolution: Convolution, key: str) -> Lowering | None:
        """The verdict of the file, if it is one of those that can be had here."""
        verdict = _read(self._path).get(key)
        name = verdict.get("lowering") if isinstance(verdict, dict) else None
        return name if name in candidates(convolution) else None

    def _measured(self, convolution: Convolution, clients: int, key: str) -> Lowering:
        times = measure(convolution, clients)
        best = min(times, key=times.__getitem__)
        verdict = {"lowering": best, "step_us": {name: 1e6 * s for name, s in times.items()}}
        logging.info("convolution %s: %s", key, verdict)
        if self._path is not None:
            # Read again: other processes add to the file as well.
            verdicts = {**_read(self._path), key: verdict}
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {"format": _FORMAT, "verdicts": verdicts})
            except OSError as error:
                logging.warning("%s: cannot be written (%s)", self._path, error.strerror)
        return best


def _read(path: Path | None) -> dict[str, Any]:
    """The verdicts of a file; none, with a warning, if it is not one of this format."""
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
    """Lets a tuner choose what is traced inside, for so many clients side by side; None does not.

    Args:
      tuner: the run's.
      clients: 1 for clients one at a time.
    """
    if tuner is None:
        yield
        return
    with chosen_by(functools.partial(tuner, clients=clients)):
        yield


def key_of(convolution: Convolution, clients: int) -> str:
    """What a verdict holds for, as text; it stays as it is for as long as the format does."""
    device = jax.devices()[0]
    dtype, lhs, rhs, strides, padding, implicit, direct = convolution
    return (
        f"jax {jax.__version__}, {device.platform}: {device.device_kind}, {clients} x {dtype} "
        f"{_list(lhs)} * {_list(rhs)}, strides {_list(strides)}, "
        f"padding {_list(sum(padding, ()))}{', implicit' * implicit}{', direct' * direct}"
    )


def _list(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def candidates(convolution: Convolution) -> tuple[Lowering, ...]:
    """The lowerings worth measuring, the same for all who share a key.

    On a CPU "lax" is not: inside a loop it is ten times slower than the others, which would make
    measuring it take as long as training.
    """
    found: list[Lowering] = ["patches"]
    if convolution.window > 1:
        found += ["rows", "shift_add"]
    if convolution.implicit:
        found.append("implicit")
    if convolution.direct and jax.default_backend() == "cpu":
        found.append("direct")
    if jax.default_backend() != "cpu":
        found.append("lax")
    return tuple(name for name in get_args(Lowering) if name in found)


def measure(convolution: Convolution, clients: int) -> dict[Lowering, float]:
    """Seconds of a forward and backward pass of all clients, by lowering.

    A lowering that fails on this device is left out, with a warning. May be called while another
    function is traced.

    Raises:
      RuntimeError: none runs.
    """
    times: dict[Lowering, float] = {}
    with jax.ensure_compile_time_eval():
        arrays = _operands(convolution, clients)
        programs = {}
        for name in candidates(convolution):
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
    """`(count, kernel, x) -> (kernel, x)`: so many steps of descent on the squared output."""
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
    """Wall time of one step of a loop of so many."""
    began = time.perf_counter()
    jax.block_until_ready(run(count, *arrays))
    return (time.perf_counter() - began) / count
