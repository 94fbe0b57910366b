"""Small models with their layouts, written by hand."""

import re

import jax

from fedjax_het.contract.widths import Axes, Layout, Span
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import Conv, heterofl_cnn
from fedjax_het.models.conv1d import conv1d
from fedjax_het.models.lstm import char_lstm
from fedjax_het.models.mlp import Dense, mlp
from fedjax_het.models.resnet import resnet
from fedjax_het.models.saving import named
from fedjax_het.models.transformer import transformer
from fedjax_het.models.unet import unet
from fedjax_het.models.vgg import vgg11


def layout_of(model, sizes, rules):
    """A layout from regular expressions of names and the spans of the last axes, or None.

    A span is the name of a group, `(name, outer)`, or None; several spans of an axis are a list.
    """

    def spans(part, length):
        parts = part if isinstance(part, list) else [part]
        if parts == [None]:
            return (Span(None, length),)
        return tuple(Span(*p) if isinstance(p, tuple) else Span(p) for p in parts)

    def axes(name, leaf):
        found = next((axes for pattern, axes in rules.items() if re.fullmatch(pattern, name)), ())
        parts = (None,) * (len(leaf.shape) - len(found)) + tuple(found)
        return Axes(tuple(map(spans, parts, leaf.shape)))

    leaves = [axes(name, leaf) for name, leaf in named(model.shapes).items()]
    return Layout(sizes, jax.tree.unflatten(jax.tree.structure(model.shapes), leaves))


def of_chain(block, layers, before, groups, outer=None):
    """Rules of layers (name of the layer, its norm or "") one after the other."""
    rules = {}
    for i, (layer, norm) in enumerate(layers):
        first = before if outer is None or before is None else (before, outer)
        rules[rf"blocks\.{block}\.{layer}\.kernel"] = (first, groups[i])
        rules[rf"blocks\.{block}\.{layer}\.bias"] = (groups[i],)
        if norm:
            rules[rf"(stats\.)?blocks\.{block}\.{norm}\..*"] = (groups[i],)
        before, outer = groups[i], None
    return rules


def small_mlp(factor=1, **options):
    model = mlp((6,), 3, hidden=(8 // factor, 16 // factor), **options)
    norm = {"group": "Normalize_0.group_norm", "batch": "Normalize_0.batch_norm"}
    norm = norm.get(options.get("norm"), "")
    rules = {
        **of_chain(0, [("Dense_0", norm)], None, ["a"]),
        **of_chain(1, [("Dense_0", norm)], "a", ["b"]),
        **of_chain(2, [("Dense_0", "")], "b", [None]),
        r"exits\.0\..*kernel": ("a", None),
        r"exits\.1\..*kernel": ("b", None),
    }
    return model, {"a": 8, "b": 16}, rules


def small_leaf(factor=1):
    blocks = (
        flax_block("conv1", Conv(8 // factor, 5, pool=True)),
        flax_block("conv2", Conv(12 // factor, 5, pool=True)),
        flax_block("fc1", Dense(16 // factor, relu=True)),
        flax_block("fc2", Dense(3)),
    )
    rules = {
        **of_chain(0, [("Conv_0", "")], None, ["c1"]),
        **of_chain(1, [("Conv_0", "")], "c1", ["c2"]),
        **of_chain(2, [("Dense_0", "")], "c2", ["f"], outer=4),
        **of_chain(3, [("Dense_0", "")], "f", [None]),
    }
    return BlockModel("leaf", blocks, (8, 8, 1), 3), {"c1": 8, "c2": 12, "f": 16}, rules


def small_heterofl(factor=1, norm="group"):
    model = heterofl_cnn((8, 8, 1), 3, channels=(8 // factor, 16 // factor), norm=norm)
    name = f"Normalize_0.{norm}_norm"
    rules = {
        **of_chain(0, [("Conv_0", name)], None, ["a"]),
        **of_chain(1, [("Conv_0", name)], "a", ["b"]),
        r"blocks\.2\.kernel": ("b", None),
    }
    return model, {"a": 8, "b": 16}, rules


def small_resnet(factor=1, norm="group"):
    model = resnet((8, 8, 3), 4, units_per_group=1, bottleneck=False, width=8 // factor, norm=norm)
    norm = f".Normalize_0.{norm}_norm"

    def layer(name):
        return (f"{name}.Conv_0", f"{name}{norm}")

    rules = of_chain(0, [layer("ConvNorm_0")], None, ["s0"])
    sizes = {"s0": 8, "s1": 16, "s2": 32}
    for stage in range(3):
        block, before = 1 + stage, f"s{max(0, stage - 1)}"
        sizes[f"u{block}"] = sizes[f"s{stage}"]
        layers = [layer("ConvNorm_0"), layer("ConvNorm_1")]
        rules |= of_chain(block, layers, before, [f"u{block}", f"s{stage}"])
        rules |= of_chain(block, [layer("shortcut")], before, [f"s{stage}"])
    return model, sizes, {**rules, r"blocks\.4\..*kernel": ("s2", None)}


def small_vgg(factor=1):
    model = vgg11(num_classes=3, width=1 / 8 / factor)
    rules, before, sizes = {}, None, {}
    for i, channels in enumerate((8, 16, 32, 32, 64, 64, 64, 64)):
        rules |= of_chain(i, [("Conv_0", "Normalize_0.group_norm")], before, [f"c{i}"])
        before, sizes[f"c{i}"] = f"c{i}", channels
    return model, sizes, {**rules, **of_chain(8, [("Dense_0", "")], before, [None])}


def small_conv1d(factor=1):
    model = conv1d((16, 3), 4, channels=(8 // factor, 16 // factor), kernel=3)
    norm = "Normalize_0.group_norm"
    rules = {
        **of_chain(0, [("Conv_0", norm)], None, ["a"]),
        **of_chain(1, [("Conv_0", norm)], "a", ["b"]),
        **of_chain(2, [("Dense_0", "")], "b", [None]),
    }
    return model, {"a": 8, "b": 16}, rules


def small_lstm(factor=1):
    model = char_lstm((6,), 5, embedding=8 // factor, units=12 // factor)
    rules = {
        r"blocks\.0\.symbol": (None, "e"),
        r"blocks\.1\.inputs\.kernel": ("e", ("u", 4)),
        r"blocks\.1\.inputs\.bias": (("u", 4),),
        r"blocks\.1\.states": ("u", ("u", 4)),
        r"blocks\.2\.inputs\.kernel": ("u", ("v", 4)),
        r"blocks\.2\.inputs\.bias": (("v", 4),),
        r"blocks\.2\.states": ("v", ("v", 4)),
        r"blocks\.3\..*kernel": ("v", None),
    }
    return model, {"e": 8, "u": 12, "v": 12}, rules


def small_transformer(factor=1):
    model = transformer((5,), 7, 2, width=16 // factor, heads=2, hidden=12 // factor)
    rules, sizes = {r"blocks\.0\..*": (None, "s")}, {"s": 16}
    for b in (1, 2):
        sizes |= {f"d{b}": 8, f"v{b}": 8, f"h{b}": 12}
        for name, group in (("query|key", f"d{b}"), ("value", f"v{b}")):
            rules[rf"blocks\.{b}\.({name})\.kernel"] = ("s", (group, 2))
            rules[rf"blocks\.{b}\.({name})\.bias"] = ((group, 2),)
        rules |= {
            rf"blocks\.{b}\.out\.kernel": ((f"v{b}", 2), "s"),
            rf"blocks\.{b}\.expand\.kernel": ("s", f"h{b}"),
            rf"blocks\.{b}\.expand\.bias": (f"h{b}",),
            rf"blocks\.{b}\.contract\.kernel": (f"h{b}", "s"),
            rf"blocks\.{b}\.(out|contract)\.bias": ("s",),
            rf"blocks\.{b}\.LayerNorm_.\..*": ("s",),
        }
    rules |= {r"blocks\.3\.LayerNorm_0\..*": ("s",), r"blocks\.3\..*kernel": ("s", None)}
    return model, sizes, rules


def small_unet(factor=1):
    model = unet((8, 8, 2), 2, width=4 // factor)
    norms = [f"Twice_0.Normalize_{i}.group_norm" for i in (0, 1)]
    layers = [(f"Twice_0.Conv_{i}", norm) for i, norm in enumerate(norms)]
    inputs, widths = [None, "b0", "b1", ["b2", "b1"], ["b3", "b0"]], [4, 8, 16, 8, 4]
    rules, sizes = {}, {}
    for b, width in enumerate(widths):
        rules |= of_chain(b, layers, inputs[b], [f"a{b}", f"b{b}"])
        sizes |= {f"a{b}": width, f"b{b}": width}
    return model, sizes, {**rules, r"blocks\.5\.kernel": ("b4", None)}


SMALL = {
    "mlp": small_mlp,
    "leaf": small_leaf,
    "heterofl_cnn": small_heterofl,
    "resnet": small_resnet,
    "vgg": small_vgg,
    "conv1d": small_conv1d,
    "lstm": small_lstm,
    "transformer": small_transformer,
    "unet": small_unet,
}
