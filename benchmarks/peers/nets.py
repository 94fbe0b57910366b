"""The networks of the comparison as lists of layers, for contenders without this library.

Parameters are exchanged as a list of arrays in the order of `jax.tree.leaves` of our blocks, in our
layout: per convolution, linear layer or norm the bias, if any, then the weight; kernels are
`[window, window, channels in, channels out]` and `[inputs, outputs]`, activations channels-last.
The layers over symbols (`torch_text`) are as wide as their parameters.
"""

from collections.abc import Iterator, Sequence

Layer = tuple

_RELU: Layer = ("relu",)


def conv(features: int, window: int, *, padding: str = "same", bias: bool = True) -> Layer:
    """Convolution of stride 1."""
    return ("conv", features, window, 1, padding, bias)


def _dense(*widths: int) -> list[Layer]:
    layers: list[Layer] = [("flatten",)]
    for width in widths[:-1]:
        layers += [("dense", width), _RELU]
    return [*layers, ("dense", widths[-1])]


def _pooled(features: int, window: int, padding: str = "same") -> list[Layer]:
    return [conv(features, window, padding=padding), _RELU, ("pool",)]


def unit(planes: int, stride: int, shortcut: bool) -> Layer:
    """Residual unit: body, shortcut, sum, ReLU; group norm of 8 groups after every convolution."""
    body = [
        ("conv", planes, 3, stride, "same", False),
        ("norm", 8),
        _RELU,
        ("conv", planes, 3, 1, "same", False),
        ("norm", 8),
    ]
    skip = [("conv", planes, 1, stride, "same", False), ("norm", 8)] if shortcut else []
    return ("unit", body, skip)


def _resnet20(classes: int) -> list[Layer]:
    layers: list[Layer] = [conv(16, 3, bias=False), ("norm", 8), _RELU]
    for stage in range(3):
        for repeat in range(3):
            first = stage > 0 and repeat == 0
            layers.append(unit(16 * 2**stage, 2 if first else 1, first))
    return [*layers, ("mean",), ("dense", classes)]


def _pfl_cnn(classes: int) -> list[Layer]:
    return [
        conv(32, 3, padding="valid"),
        _RELU,
        *_pooled(64, 3, "valid"),
        ("flatten",),
        ("dropout", 0.25),
        ("dense", 128),
        _RELU,
        ("dropout", 0.5),
        ("dense", classes),
    ]


def _vgg11(classes: int) -> list[Layer]:
    found: list[Layer] = []
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for features in stage:
            found += [conv(features, 3), ("norm", 8), _RELU]
        found.append(("pool",))
    return [*found, *_dense(classes)]


def layers(model: str, classes: int) -> list[Layer]:
    """The layers of one of our models, input side first.

    Args:
      model: a name of `fedjax_het.models`, with its default sizes; `"digits_mlp"` has hidden layers
        of 128 and 64, and `"char_lstm"` predicts at the last position.
      classes: outputs.
    """
    found = {
        "leaf_cnn": [*_pooled(32, 5), *_pooled(64, 5), *_dense(512, classes)],
        "cifar_cnn": [*_pooled(32, 3), *_pooled(64, 3), *_dense(256, classes)],
        "adel_cnn2": [*_pooled(6, 5, "valid"), *_pooled(6, 5, "valid"), *_dense(50, classes)],
        "mlp": _dense(200, 200, classes),
        "digits_mlp": _dense(128, 64, classes),
        "logistic": _dense(classes),
        "pfl_cnn": _pfl_cnn(classes),
        "resnet20": _resnet20(classes),
        "vgg11": _vgg11(classes),
        "char_lstm": [("vectors",), ("lstm",), ("lstm",), ("last",), ("dense", classes)],
        "transformer": [("places",), *[("encoder", 4)] * 4, ("symbols",)],
    }
    return found[model]


def flat(network: Sequence[Layer]) -> Iterator[Layer]:
    """All layers in the order of their parameters: of a unit, the body and then the shortcut."""
    for layer in network:
        if layer[0] == "unit":
            yield from flat(layer[1])
            yield from flat(layer[2])
        else:
            yield layer
