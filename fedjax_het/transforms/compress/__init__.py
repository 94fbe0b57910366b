"""Compressions of the updates as transformations of methods; the clock charges what is sent."""

from collections.abc import Callable

from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.compress.quantize import qsgd, sign, uniform
from fedjax_het.transforms.compress.sparse import random_k, top_k

__all__ = ["COMPRESSIONS", "qsgd", "random_k", "sign", "top_k", "uniform"]

# Factories of transformations by name.
COMPRESSIONS: dict[str, Callable[..., Transformation]] = {
    "qsgd": qsgd,
    "random_k": random_k,
    "sign": sign,
    "top_k": top_k,
    "uniform": uniform,
}
