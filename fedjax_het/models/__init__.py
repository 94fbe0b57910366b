"""Models as ordered blocks, and the registry that builds them by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options
from fedjax_het.models.adapt import from_flax
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.cnn import adel_cnn2, cifar_cnn, heterofl_cnn, leaf_cnn, pfl_cnn
from fedjax_het.models.conv1d import conv1d
from fedjax_het.models.exits import ensemble, truncated, with_exits
from fedjax_het.models.frozen import freeze
from fedjax_het.models.inputs import as_shapes, is_shape
from fedjax_het.models.low_rank import lora
from fedjax_het.models.lstm import char_lstm
from fedjax_het.models.mlp import logistic, mlp
from fedjax_het.models.narrow import sub_network
from fedjax_het.models.precision import with_compute_dtype
from fedjax_het.models.resnet import resnet, resnet20, resnet56, resnet110
from fedjax_het.models.start import check_start, started
from fedjax_het.models.transformer import transformer
from fedjax_het.models.unet import unet
from fedjax_het.models.units import layout_of
from fedjax_het.models.vgg import vgg11, vgg13, vgg16

MODELS: dict[str, Callable[..., BlockModel]] = {
    "adel_cnn2": adel_cnn2,
    "char_lstm": char_lstm,
    "cifar_cnn": cifar_cnn,
    "conv1d": conv1d,
    "heterofl_cnn": heterofl_cnn,
    "leaf_cnn": leaf_cnn,
    "logistic": logistic,
    "mlp": mlp,
    "pfl_cnn": pfl_cnn,
    "resnet": resnet,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "transformer": transformer,
    "unet": unet,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
}


def build(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    exits: bool | Literal["shared"] = False,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    start: str | Path | None = None,
    trainable: str | None = None,
    lora: Mapping[str, Any] | None = None,
    **options: Any,
) -> BlockModel:
    """Makes a model by name, for configuration files.

    A model with `start` begins with the values of another run. With `trainable` or `lora`, or both,
    only a part of it is trained and sent, see `freeze` and `lora`. In a configuration::

        config.model = dict(
            name="transformer", layers=2, width=64,
            start="runs/pretrained",            # work directory, or .safetensors
            lora={"rank": 4, "targets": "query|value"},
            trainable="LayerNorm",              # beside the adapters
        )

    Args:
      name: name of the model, a key of `MODELS`.
      input_shape: shape of one sample, without a batch axis.
      num_classes: size of the last axis of the outputs.
      exits: whether a head is added after every block except the last (`with_exits`), as FedEL
        needs; "shared" adds one head for all of them.
      compute_dtype: dtype of activations and matrix products; parameters stay float32
        (`precision`).
      start: work directory of a finished run, or safetensors file, with the values at the start for
        every seed; None draws them.
      trainable: regular expression of the names of trained parameters, as in `freeze`; None trains
        all, or with `lora` the adapters only.
      lora: options of `lora`: `rank`, `alpha`, `targets` and `seed`; None for no adapters.
      **options: keyword arguments of the factory, e.g. `norm="batch"`.

    Returns:
      The model.

    Raises:
      InputError: if the name or an option is unknown (the message lists the known ones), or an
        option has the wrong type; or if the values at the start do not fit the model.
    """
    require_known(name, MODELS, "model")
    factory = MODELS[name]
    derived = ("input_shape", "num_classes")
    check_options(options, f"option of model {name!r}", factory, derived=derived)
    require(
        isinstance(exits, bool) or exits == "shared",
        f"exits = {exits!r}",
        "must be True, False or 'shared'",
        "use True",
    )
    check_start(start, trainable, lora)
    shape = as_shapes(input_shape)
    require(
        is_shape(shape),
        f"model {name!r} with input_shape = {shape}",
        "takes samples of one array",
        "write a flax module for dictionaries and tuples, and use from_flax",
    )
    model = factory(input_shape=shape, num_classes=num_classes, **options)
    spec = {"name": name, "input_shape": shape, "num_classes": num_classes, **options}
    model = replace(model, spec=spec)
    if exits:
        model = with_exits(model, shared=exits == "shared")
    model = with_compute_dtype(model, compute_dtype)
    return model if start is None else started(model, start, trainable, lora)


__all__ = [
    "MODELS",
    "Block",
    "BlockModel",
    "build",
    "ensemble",
    "flax_block",
    "freeze",
    "from_flax",
    "layout_of",
    "lora",
    "sub_network",
    "truncated",
    "with_compute_dtype",
    "with_exits",
]
