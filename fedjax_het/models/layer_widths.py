"""The attributes of the layers of flax that are widths.

Classes go by name, linen and nnx alike, so that nnx need not be imported.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

# Modules whose scores are divided by the root of the length of a query.
ATTENTION = ("MultiHeadDotProductAttention", "MultiHeadAttention", "SelfAttention")

# Shape of a parameter at another width, by its path below the layer.
_Shape = Callable[..., tuple[int, ...]]


def kind_of(layer: Any) -> str | None:
    """Name of the class of flax that a layer is, also by inheritance; None for other modules."""
    found = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("flax."))
    return None if found.__name__ == "Module" else found.__name__


def output_axes(layer: Any) -> int:
    """Number of axes of the outputs of a general dense layer that its kernel makes."""
    features = layer.features if isinstance(layer, nn.Module) else layer.out_features
    return len(features) if isinstance(features, (tuple, list)) else 1


def _of_dense(layer: Any, shape: _Shape) -> dict[str, Any]:
    inputs, outputs = shape("kernel")[-2:]
    if isinstance(layer, nn.Module):
        return {"features": outputs}
    return {"in_features": inputs, "out_features": outputs}


def _of_conv(layer: Any, shape: _Shape) -> dict[str, Any]:
    inputs, outputs = shape("kernel")[-2:]
    groups = layer.feature_group_count
    full = layer.features if isinstance(layer, nn.Module) else layer.out_features
    if groups > 1 and outputs != full:
        # Each input channel has its own outputs; other groups would have to be cut alike.
        each = full // groups
        if inputs != 1 or outputs % each:
            raise ValueError(f"{outputs} of {full} outputs of a convolution of {groups} groups")
        groups = outputs // each
    if isinstance(layer, nn.Module):
        return {"features": outputs, "feature_group_count": groups}
    return {
        "in_features": inputs * groups,
        "out_features": outputs,
        "feature_group_count": groups,
    }


def _of_transposed(layer: Any, shape: _Shape) -> dict[str, Any]:
    if layer.transpose_kernel:
        raise ValueError("a convolution with transpose_kernel")
    return {"features" if isinstance(layer, nn.Module) else "out_features": shape("kernel")[-1]}


def _of_embed(layer: Any, shape: _Shape) -> dict[str, Any]:
    rows, length = shape("embedding")
    return {"num_embeddings": rows, "features": length}


def _of_general(layer: Any, shape: _Shape) -> dict[str, Any]:
    kernel, axes = shape("kernel"), output_axes(layer)
    if isinstance(layer, nn.Module):
        return {"features": kernel[-axes:]}
    return {"out_features": kernel[-axes:], "in_features": kernel[-axes - len(layer.axis) : -axes]}


def _of_attention(layer: Any, shape: _Shape) -> dict[str, Any]:
    inputs, heads, length = shape("query", "kernel")
    changes = {"num_heads": heads, "qkv_features": heads * length}
    if isinstance(layer, nn.Module):
        return changes
    return {**changes, "in_features": inputs, "head_dim": length}


def _of_groups(layer: Any, shape: _Shape) -> dict[str, Any]:
    if isinstance(layer, nn.Module):
        return {}
    channels = shape("scale" if layer.use_scale else "bias")[0]
    return {"num_features": channels, "group_size": channels // layer.num_groups}


# By class, a function `(layer, shape)` that gives attributes and their values at another width.
CHANGES: dict[str, Callable[[Any, _Shape], dict[str, Any]]] = {
    "Dense": _of_dense,
    "Linear": _of_dense,
    "Conv": _of_conv,
    "ConvTranspose": _of_transposed,
    "Embed": _of_embed,
    "DenseGeneral": _of_general,
    "LinearGeneral": _of_general,
    **dict.fromkeys(ATTENTION, _of_attention),
    "GroupNorm": _of_groups,
}
