"""Scalars for TensorBoard, written with tensorboardX (extra `tracking`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_het.common.errors import InputError

_SKIPPED = ("step", "info", "nonfinite")


class TensorBoard:
    """Writes every number of a metrics row under its own name."""

    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Writes one row of `metrics.jsonl`."""
        for name, value in metrics.items():
            if name not in _SKIPPED and isinstance(value, int | float):
                self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def tensorboard_writer(workdir: Path | None) -> TensorBoard:
    """The writer for `workdir/tensorboard`; raises `InputError` if tensorboardX is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard = True: tensorboardX is not installed; "
            "install it with pip install 'fedjax-het[tracking]', or set tensorboard = False"
        ) from error
    return TensorBoard(SummaryWriter(str(Path(workdir or ".") / "tensorboard")))
