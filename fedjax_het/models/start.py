"""Models of a configuration that start from the values of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_het.common.errors import require
from fedjax_het.common.options import check_options
from fedjax_het.models.base import BlockModel
from fedjax_het.models.frozen import freeze, matcher
from fedjax_het.models.low_rank import lora as with_adapters
from fedjax_het.models.saving import fitted, read, require_finite


def check_start(
    start: str | Path | None, trainable: str | None, lora: Mapping[str, Any] | None
) -> None:
    """Raises `InputError` unless these options of `models.build` fit together."""
    require(
        start is None or isinstance(start, str | Path),
        f"start = {start!r}",
        "must be a path",
        "name a work directory or a .safetensors file",
    )
    if trainable is not None:
        matcher(trainable)
    if lora is not None:
        require(
            isinstance(lora, Mapping),
            f"lora = {lora!r}",
            "must be a mapping of options",
            "e.g. lora = {'rank': 8}",
        )
        derived = ("model", "variables", "trainable")
        check_options(lora, "option of lora", with_adapters, derived=derived)
    require(
        start is not None or (trainable is None and lora is None),
        f"trainable = {trainable!r}, lora = {lora!r} without start",
        "need the values of a trained model, because most of them stay as they are",
        "set start to a work directory or a .safetensors file",
    )


def started(
    model: BlockModel,
    start: str | Path,
    trainable: str | None = None,
    lora: Mapping[str, Any] | None = None,
) -> BlockModel:
    """The model with the values of a file at its start, and perhaps trained in part.

    Args:
      model: complete model.
      start: work directory or safetensors file, see `saving.read`.
      trainable: names to train, see `freeze`; None means all, or with `lora` the adapters only.
      lora: options of `lora`, or None.

    Raises:
      InputError: if the file is missing or does not fit, or nothing would be trained.
    """
    arrays, _ = read(start, "start")
    remedy = "take the file of a run with this model, or change the options of the model"
    values = fitted(arrays, model.shapes, f"start = {str(start)!r}", remedy)
    require_finite(values, f"start = {str(start)!r}")
    if lora is not None:
        return with_adapters(model, values, trainable=trainable, **lora)
    return freeze(model, values, ".*" if trainable is None else trainable)
