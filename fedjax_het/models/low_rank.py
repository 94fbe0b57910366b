"""Low-rank adaptation of dense layers (Hu et al. 2021, arXiv:2106.09685).

    y = x W + (alpha / rank) (x A) B + bias,   W constant,  A [in, rank],  B [rank, out]

At the start A is Gaussian with variance 1 / in, and B is zero, so that the outputs are those of the
model without adapters. The products with A and B are thin: W + A B is never formed in training, and
prices of work and traffic are those of adapters.
"""

import functools
import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.frozen import freeze, matcher
from fedjax_het.models.origin import Origin, require_complete
from fedjax_het.models.saving import fitted, leaf_paths, named

Array = jax.Array

# Key of the adapters among the parameters of a block.
_KEY = "lora"


class _Layer(NamedTuple):
    """A dense layer: its path in the block, and the shape of its kernel.

    Attributes:
      path: keys of the layer's parameters.
      inputs: axes of the kernel that are contracted; they come first.
      outputs: other axes.
    """

    path: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def lora(
    model: BlockModel,
    variables: Variables,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | None = None,
    trainable: str | Callable[[str], bool] | None = None,
    seed: int = 0,
) -> BlockModel:
    r"""The model that trains low-rank adapters of the dense layers of `model`; see the module.

    It is `freeze` of the model with adapters: all other values are constants, and blocks without
    adapters and other trained parameters join their neighbours::

        start = fh.load_model("runs/pretrained")
        model = fh.models.lora(start.model, start.variables, rank=4, targets="query|value")
        problem = fh.Problem(model, data, fleet)
        result = fh.simulate(fh.algorithms.fedavg(problem, learning_rate=0.1), problem, rounds=50)
        result.save("tuned.safetensors")  # complete parameters, with W + (alpha / rank) A B

    Args:
      model: complete model, of which no part is constant yet. Adapters are for `nn.Dense` and
        `nn.DenseGeneral` of flax.linen, so also for `nn.MultiHeadDotProductAttention`; exit heads
        get none.
      variables: its values, e.g. those of `load_model`.
      rank: rank of the adapters, at most the smaller side of each kernel.
      alpha: scale of the adapters, multiplied by 1 / rank.
      targets: regular expression that is searched in the name of a layer, such as
        `"blocks.1.query"`; None means all dense layers.
      trainable: other parameters to train, as in `freeze`; e.g. `"exits|LayerNorm"`.
      seed: seed of A.

    Returns:
      The smaller model; the parameters of an adapter are `lora.<layer>.a` and `.b` of its block.
      `origin.complete` adds `(alpha / rank) A B` to the kernels.

    Raises:
      InputError: if `targets` matches no dense layer, or a layer of another kind; or if the rank
        does not fit.
    """
    require(rank >= 1, f"rank = {rank}", "must be at least 1", "use 4 or 8")
    require(alpha > 0, f"alpha = {alpha}", "must be positive", "use twice the rank")
    require_complete(model, "choose all trained parameters")
    values = fitted(
        named(variables), model.shapes, "variables", "take them from load_model or init() of it"
    )
    layers = _targets(model, values, targets)
    scale = alpha / rank
    blocks, params = [], []
    for b, block in enumerate(model.blocks):
        own, adapted = values.params["blocks"][b], layers[b]
        if not adapted:
            blocks.append(block)
            params.append(own)
            continue
        for layer in adapted:
            require(
                rank <= min(math.prod(layer.inputs), math.prod(layer.outputs)),
                f"rank = {rank}",
                f"exceeds the kernel {[*layer.inputs, *layer.outputs]} of layer "
                f"{'.'.join(layer.path)!r} in block {block.name!r}",
                "use a smaller rank, or leave the layer out of targets",
            )
        adapters = _adapters(adapted, rank, (seed, b))
        blocks.append(_adapted(block, adapted, adapters, scale))
        params.append({**own, _KEY: adapters})
    larger = replace(model, blocks=tuple(blocks), spec=None)
    start = values._replace(params={**values.params, "blocks": tuple(params)})
    other = (lambda name: False) if trainable is None else matcher(trainable)
    small = freeze(larger, start, lambda name: f".{_KEY}." in name or other(name))
    assert small.origin is not None
    complete = small.origin.complete

    def merged(variables: Variables) -> Variables:
        whole = complete(variables)
        merge = functools.partial(_merged, scale=scale)
        blocks = tuple(map(merge, whole.params["blocks"], layers))
        return whole._replace(params={**whole.params, "blocks": blocks})

    scaled = hashlib.sha256(f"{small.origin.digest} {scale}".encode()).hexdigest()
    return replace(small, origin=Origin(model, merged, scaled))


def _targets(model: BlockModel, values: Variables, targets: str | None) -> list[tuple[_Layer, ...]]:
    """The chosen dense layers of each block."""
    found: list[dict[tuple[str, ...], _Layer]] = [{} for _ in model.blocks]
    recording = [_recording(block, seen) for block, seen in zip(model.blocks, found)]
    replace(model, blocks=tuple(recording), exits=()).activation_shapes(1)
    dense = [
        f"blocks.{b}.{'.'.join(path)}" for b, seen in enumerate(found) for path in sorted(seen)
    ]
    pattern = matcher("" if targets is None else targets, "targets")
    chosen = [
        tuple(seen[path] for path in sorted(seen) if pattern(f"blocks.{b}.{'.'.join(path)}"))
        for b, seen in enumerate(found)
    ]
    require(
        any(chosen),
        f"targets = {targets!r}",
        f"matches no dense layer of model {model.name!r}; there are {', '.join(dense) or 'none'}",
        "choose some of them, or train other parameters with freeze",
    )
    others = [
        name
        for b, block in enumerate(values.params["blocks"])
        for path, leaf in leaf_paths(block).items()
        if path[-1:] == ("kernel",)
        for name in [".".join(("blocks", str(b), *path[:-1]))]
        if name not in dense and pattern(name)
    ]
    require(
        targets is None or not others,
        f"targets = {targets!r}",
        f"matches {', '.join(others)}, which is no nn.Dense or nn.DenseGeneral",
        f"choose among {', '.join(dense)}",
    )
    return chosen


def _is_dense(module: nn.Module) -> bool:
    plain = type(module) in (nn.Dense, nn.DenseGeneral) and module.dot_general_cls is None
    return plain and not getattr(module, "batch_dims", ())


def _recording(block: Block, seen: dict[tuple[str, ...], _Layer]) -> Block:
    """The block, whose evaluation notes its dense layers."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        called = _is_dense(module) and context.method_name == "__call__"
        # Layers of other blocks may be called too, without parameters (`from_flax`).
        if called and module.scope.has_variable("params", "kernel"):
            shape = module.scope.get_variable("params", "kernel").shape
            axis = getattr(module, "axis", -1)
            inputs = 1 if isinstance(axis, int) else len(axis)
            path = module.scope.path
            seen[path] = _Layer(path, tuple(shape[:inputs]), tuple(shape[inputs:]))
        return result

    def apply(*args: Any, **kwargs: Any) -> tuple[Array, PyTree]:
        with nn.intercept_methods(intercept):
            return block.apply(*args, **kwargs)

    return block._replace(apply=apply)


def _adapters(layers: tuple[_Layer, ...], rank: int, address: tuple[int, ...]) -> PyTree:
    """Parameters of the adapters at the start, nested as their layers."""
    tree: dict[str, Any] = {}
    for layer in layers:
        rng = np.random.default_rng((*address, zlib.crc32(".".join(layer.path).encode())))
        place = tree
        for key in layer.path:
            place = place.setdefault(key, {})
        scale = math.prod(layer.inputs) ** -0.5
        place["a"] = (scale * rng.standard_normal((*layer.inputs, rank))).astype(np.float32)
        place["b"] = np.zeros((rank, *layer.outputs), np.float32)
    return tree


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    return functools.reduce(lambda place, key: place[key], path, tree)


def _adapted(block: Block, layers: tuple[_Layer, ...], start: PyTree, scale: float) -> Block:
    """The block with adapters, which are among its parameters under the key `lora`."""
    by_path = {layer.path: layer for layer in layers}

    def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
        params, stats = block.init(key, x)
        return {**params, _KEY: jax.tree.map(jnp.asarray, start)}, stats

    def apply(params: PyTree, *args: Any, **kwargs: Any) -> tuple[Array, PyTree]:
        own = {name: part for name, part in params.items() if name != _KEY}

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            layer = by_path.get(module.scope.path) if module.scope is not None else None
            if layer is None or context.method_name != "__call__":
                return call(*args, **kwargs)
            adapter = _at(params[_KEY], layer.path)
            product = module.dot_general
            # The module is the copy that flax made for this run. Its product is replaced, not its
            # result, because other interceptors may change its input.
            object.__setattr__(
                module, "dot_general", functools.partial(_product, product, adapter, scale)
            )
            try:
                return call(*args, **kwargs)
            finally:
                object.__setattr__(module, "dot_general", product)

        with nn.intercept_methods(intercept):
            return block.apply(own, *args, **kwargs)

    return block._replace(init=init, apply=apply)


def _product(
    product: Callable[..., Array] | None,
    adapter: PyTree,
    scale: float,
    x: Array,
    kernel: Array,
    dimension_numbers: Any,
    **options: Any,
) -> Array:
    """`x W + scale (x A) B`, for the product of a dense layer."""
    y = (product or jax.lax.dot_general)(x, kernel, dimension_numbers, **options)
    a, b = (adapter[name].astype(x.dtype) for name in ("a", "b"))
    thin = jax.lax.dot_general(x, a, dimension_numbers)
    return y + scale * jax.lax.dot_general(thin, b, (((thin.ndim - 1,), (0,)), ((), ())))


def _merged(params: PyTree, layers: tuple[_Layer, ...], scale: float) -> PyTree:
    """The block's own parameters, with the adapters added to the kernels."""
    if not layers:
        return params
    # The map makes new dictionaries, so that those of `params` do not change.
    tree = jax.tree.map(lambda leaf: leaf, {k: v for k, v in params.items() if k != _KEY})
    for layer in layers:
        adapter, place = _at(params[_KEY], layer.path), _at(tree, layer.path)
        place["kernel"] = place["kernel"] + scale * jnp.tensordot(adapter["a"], adapter["b"], 1)
    return tree
