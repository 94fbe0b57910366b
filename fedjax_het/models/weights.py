"""Which parameters are weights and biases of layers, and which are scales of norms."""

import jax

from fedjax_het.common.types import PyTree


def layer_parameters(params: PyTree) -> PyTree:
    """Whether each tensor is a weight or a bias of a convolution, a linear layer or an embedding.

    A tensor belongs to a layer if it, or another tensor of the same module, has two axes or more:
    the bias beside a kernel does, the scale and the bias of a norm do not.

    Args:
      params: parameters or their shapes.

    Returns:
      Python bools in the structure of `params`.
    """
    paths, structure = jax.tree.flatten_with_path(params)
    layers = {path[:-1] for path, leaf in paths if len(leaf.shape) >= 2}
    return jax.tree.unflatten(structure, [path[:-1] in layers for path, _ in paths])
