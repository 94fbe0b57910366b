"""Other places for the numbers of a run, by name: TensorBoard and experiment trackers."""

from collections.abc import Sequence

from fedjax_het.common.errors import InputError
from fedjax_het.simulation.sinks.base import Opener, Sink, SinkRun, Sinks
from fedjax_het.simulation.sinks.events import tensorboard
from fedjax_het.simulation.sinks.trackers import mlflow, trackio, wandb

# A sink of one's own is added here by its name: `fh.SINKS["mine"] = opener`.
SINKS: dict[str, Opener] = {f.__name__: f for f in (mlflow, tensorboard, trackio, wandb)}


def open_sinks(names: Sequence[str], run: SinkRun) -> Sinks:
    """Opens sinks by name.

    Args:
      names: keys of `SINKS`.
      run: run whose numbers they get.

    Raises:
      InputError: if a library is missing, or a sink cannot be opened.
    """
    opened: dict[str, Sink] = {}
    for name in names:
        try:
            opened[name] = SINKS[name](run)
        except InputError:
            raise
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"sinks with {name!r}: cannot be opened ({told}); "
                f"see the documentation of {name}, or leave it out"
            ) from error
    return Sinks(opened)


__all__ = ["SINKS", "Opener", "Sink", "SinkRun", "Sinks", "open_sinks"]
