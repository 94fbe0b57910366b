"""Published parameter counts, shapes and options of the models by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models import MODELS, build
from fedjax_het.models.cnn import adel_cnn2, cifar_cnn, heterofl_cnn, leaf_cnn, pfl_cnn
from fedjax_het.models.conv1d import conv1d
from fedjax_het.models.lstm import char_lstm
from fedjax_het.models.mlp import logistic, mlp
from fedjax_het.models.resnet import resnet20, resnet56, resnet110
from fedjax_het.models.unet import unet
from fedjax_het.models.vgg import vgg11, vgg13, vgg16


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def per_block(model):
    return [size(block) for block in model.shapes.params["blocks"]]


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        (leaf_cnn(), [832, 51_264, 1_606_144, 5_130]),
        (leaf_cnn(num_classes=62, hidden=2048), [832, 51_264, 6_424_576, 126_974 + 64]),
        (adel_cnn2(), [156, 906, 4_850, 510]),
        (cifar_cnn(), [896, 18_496, 1_048_832, 2_570]),
        (pfl_cnn(), [896, 18_496, 1_605_760, 1_290]),
        # Scale and bias of the norm.
        (heterofl_cnn(), [640 + 128, 73_856 + 256, 295_168 + 512, 1_180_160 + 1_024, 5_130]),
        (logistic(), [7_850]),
        (mlp(), [157_000, 40_200, 2_010]),
        # Scale and bias of both norms.
        (mlp((10,), 1, hidden=(4, 3), norm="batch", dropout=0.1), [44 + 8, 15 + 6, 4]),
        # 4 (inputs + states + 1) states; the vectors have 8 numbers.
        (char_lstm(), [640, 4 * 265 * 256, 4 * 513 * 256, 20_560]),
        (char_lstm(num_classes=90), [720, 271_360, 525_312, 23_130]),
        (conv1d(), [45 * 32 + 64, 160 * 64 + 128, 320 * 128 + 256, 774]),
        (
            unet(),
            [
                9 * (3 + 16) * 16 + 64,
                9 * (16 + 32) * 32 + 128,
                9 * (32 + 64) * 64 + 256,
                9 * (64 + 32 + 32) * 32 + 128,
                9 * (32 + 16 + 16) * 16 + 64,
                34,
            ],
        ),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_small_models(model, counts):
    assert per_block(model) == counts


def test_vgg11_of_pr_fl():
    leaves = jax.tree.leaves(vgg11(norm="none", hidden=(512, 512)).shapes.params)
    assert sum(math.prod(leaf.shape) for leaf in leaves if len(leaf.shape) > 1) == 9_747_136
    assert sum(math.prod(leaf.shape) for leaf in leaves if len(leaf.shape) == 1) == 3_786
    assert vgg11(norm="none", hidden=(512, 512)).num_blocks == 11


def test_vgg_with_batch_norm_and_linear_head():
    # kernel, bias, scale, bias, mean, var of every convolution; two of the classifier.
    for model, convolutions in ((vgg11, 8), (vgg13, 10), (vgg16, 13)):
        variables = model(norm="batch").shapes
        assert model(norm="batch").num_blocks == convolutions + 1
        assert len(jax.tree.leaves(variables)) == 6 * convolutions + 2
    assert size(vgg16(norm="none").shapes.params) == 14_719_818


@pytest.mark.parametrize(
    ("model", "modules", "total", "statistics"),
    [
        (resnet56, [464, 14_016, 13_632, 59_776, 53_376, 236_288, 211_200, 2_570], 591_322, 8_992),
        (
            resnet110,
            [464, 27_648, 27_264, 113_152, 106_752, 447_488, 422_400, 2_570],
            1_147_738,
            17_056,
        ),
    ],
)
def test_bottleneck_resnets_of_dtfl(model, modules, total, statistics):
    by_module = model(norm="batch", granularity="module")
    variables = by_module.shapes
    assert [size(block) for block in variables.params["blocks"]] == modules
    assert size(variables.params) == total
    assert size(variables.stats) == statistics


def test_activations_of_dtfl():
    shapes = resnet56(granularity="module").activation_shapes(1)
    activations = [math.prod(shape.shape) * 4 for shape in shapes]
    assert activations == [65_536, 262_144, 262_144, 131_072, 131_072, 65_536, 65_536, 40]


def test_resnet20_by_unit():
    model = resnet20()
    assert model.num_blocks == 11
    assert [s.shape[1:] for s in model.activation_shapes(1)] == [
        *[(32, 32, 16)] * 4,
        *[(16, 16, 32)] * 3,
        *[(8, 8, 64)] * 3,
        (10,),
    ]
    # 269,722 with identity shortcuts in the paper, plus the two projections and their norms.
    assert size(model.shapes.params) == 269_722 + (16 * 32 + 64) + (32 * 64 + 128)


def test_granularities_are_the_same_network():
    def program(granularity):
        model = resnet20((8, 8, 3), width=2, granularity=granularity)
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        return str(jax.make_jaxpr(lambda v, x: model.apply(v, x)[0])(model.shapes, x))

    assert program("unit") == program("module")


@pytest.mark.parametrize(
    ("model", "fan"), [(vgg11(norm="none", width=1 / 4), 9 * 16), (resnet20(width=32), 9 * 32)]
)
def test_initial_weights_keep_the_signal_through_relu(model, fan):
    x = jax.ShapeDtypeStruct((1, 8, 8, fan // 9), jnp.float32)
    params, _ = model.blocks[1].init(jax.random.key(0), x)
    kernel = next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4)
    np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / fan), rtol=0.05)


@pytest.mark.parametrize(
    "model",
    [
        char_lstm((3,), 5, units=4),
        conv1d((8, 3), channels=(4,)),
        unet((4, 4, 1), width=2, depth=1),
        mlp((3,), 1, hidden=(4,), norm="group"),
    ],
    ids=lambda model: model.name,
)
def test_initial_weights_follow_the_key_alone(model):
    new = jax.jit(model.init)
    a, again, b = (new(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, again)
    other = [bool(jnp.any(x != y)) for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)))]
    assert sum(other) >= model.num_blocks


def test_build_passes_options():
    assert build("vgg11", (32, 32, 3), 100, norm="none").num_classes == 100
    assert build("mlp", (28, 28, 1), 10, hidden=(3,)).num_blocks == 2
    assert set(MODELS) >= {"leaf_cnn", "resnet56", "vgg16"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("leafcnn", (28, 28, 1), 10), "did you mean 'leaf_cnn'"),
        (lambda: build("vgg11", (32, 32, 3), 10, normalisation="group"), "hidden, norm.*width"),
        # What the name fixes is no option.
        (lambda: build("vgg11", (32, 32, 3), 10, depth=16), "option of model 'vgg11' 'depth'"),
        (lambda: vgg11((28, 28, 1)), "at least 32x32"),
        (lambda: vgg11(norm="layer"), "batch, group, none"),
        (lambda: vgg11(width=0.0), "width = 0.0"),
        (lambda: vgg11(depth=12), "11, 13 or 16"),
        (lambda: resnet20((5,)), "takes images"),
        (lambda: resnet20(width=0), "width = 0"),
        (lambda: resnet56(granularity="layer"), "module, unit"),
        (lambda: mlp(hidden=(3, 0)), "widths must be positive"),
        (lambda: mlp(norm="layer"), "batch, group, none"),
        (lambda: mlp(dropout=1.0), r"dropout = 1.0.*\[0, 1\)"),
        (lambda: char_lstm((8, 8, 1)), "windows of symbols"),
        (lambda: char_lstm(units=0), "units = 0"),
        (lambda: build("char_lstm", (8,), 5, predict="first"), "'first'.*every, last"),
        (lambda: conv1d((7, 3)), r"T of at least 8"),
        (lambda: conv1d((28, 28, 1)), r"windows \[T, channels\]"),
        (lambda: conv1d(channels=()), "must be positive"),
        (lambda: heterofl_cnn(channels=()), "must be positive"),
        (lambda: heterofl_cnn((4, 4, 1)), "sides of at least 8"),
        (lambda: heterofl_cnn(norm="layer"), "batch, group, none"),
        (lambda: conv1d(dropout=-0.1), "dropout = -0.1"),
        (lambda: unet((30, 32, 3)), "multiples of 4.*pad"),
        (lambda: unet(depth=0), "depth = 0"),
        (lambda: unet(norm="layer"), "batch, group, none"),
    ],
)
def test_bad_input_names_value_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
