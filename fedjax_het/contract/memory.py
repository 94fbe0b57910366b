"""Values that a merge keeps between steps, and what the training of a client reads of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_het.common.types import PyTree

Array = jax.Array


class Memory(NamedTuple):
    """What the training of a client reads of the buffers of a merge (its control variate ...).

    Tasks that are at work during a merge would read what depends on the time of their training, so
    a method with a memory needs a pace that leaves none waiting.

    Attributes:
      read: function `(buffers, client) -> kept`, traced, for one client: the value of `Task.kept`.
        Within a step, the `add` of other clients must not change it.
      like: value of `read` as `ShapeDtypeStruct`s.
    """

    read: Callable[[PyTree, Array], PyTree]
    like: PyTree


class Buffers(NamedTuple):
    """Access to buffers that a merge keeps between steps (the latest upload of every client).

    Attributes:
      take: function `acc -> buffers` that reads them from an accumulator without computation.
      put: function `(state, buffers) -> state` that writes them to the state of the method; with
        None it removes them from the state.
      memory: what clients read of the buffers; None if they read nothing.
    """

    take: Callable[[PyTree], PyTree]
    put: Callable[[PyTree, PyTree], PyTree]
    memory: Memory | None = None
