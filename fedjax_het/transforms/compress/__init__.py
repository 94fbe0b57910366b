"""Compressions of the updates as transformations of methods; the clock charges what is sent.

A client compresses the coordinates that it trains; downloads stay as they are. Everything that it
would send without compression counts as coordinates of four bytes, P = bytes / 4, running
statistics included, though these are merged as they are. If the compressed form is the longer one,
the same values are sent in the plain form, at its price. A method plans with uncompressed prices.
"""

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
