"""Training of a part of a model: the other values are constants of a smaller model.

The smaller model has the trained parameters only, so that every method, its masks and merges, and
the prices of work and traffic see nothing else::

    complete     block 0   block 1   block 2   block 3   block 4
    trained         -         -       bias     kernel       -
    smaller      [------- block 0 -------]   [---- block 1 ----]

Blocks without trained parameters join the next block, or the last one that has some. Every block
of the smaller model thus has something to train, and there is no gradient below the first one.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, cast
from fedjax_het.models.origin import Origin, require_complete
from fedjax_het.models.saving import digest, fitted, leaf_paths, named

Array = jax.Array


class _Piece(NamedTuple):
    """One block or head of the complete model, with its values and what is trained of them."""

    block: Block
    params: PyTree
    stats: PyTree
    trained: frozenset[tuple[str, ...]]

    def own(self) -> PyTree:
        """The trained parameters, as nested dictionaries with the keys of their paths."""
        leaves = leaf_paths(self.params).items()
        return unflatten_dict({path: leaf for path, leaf in leaves if path in self.trained})

    def complete(self, own: PyTree, dtype: Any = jnp.float32) -> PyTree:
        """All parameters in this dtype, given the trained ones."""
        given = leaf_paths(own)
        leaves = [given.get(path, leaf) for path, leaf in leaf_paths(self.params).items()]
        return cast(jax.tree.unflatten(jax.tree.structure(self.params), leaves), dtype)


def freeze(
    model: BlockModel, variables: Variables, trainable: str | Callable[[str], bool]
) -> BlockModel:
    r"""The model that trains a part of the parameters of `model`; the other ones are constants.

    Its `init` gives the values of `variables` for every seed. Constant running statistics, those
    of the blocks without trained parameters, are used in training and never updated, as with
    `Route.first`; dropout stays on in the other constant blocks. Constants are a part of the
    compiled programs::

        start = fh.load_model("runs/pretrained")
        model = fh.models.freeze(start.model, start.variables, r"^blocks\.5\.|bias")

    Args:
      model: complete model, of which no part is constant yet.
      variables: its values, e.g. those of `load_model`.
      trainable: function that tells whether a parameter is trained from its name, such as
        `"blocks.3.Dense_0.kernel"` or `"exits.0.Dense_0.bias"`; or a regular expression that is
        searched in the name.

    Returns:
      The smaller model. The names of its parameters count its own blocks; `origin` has the complete
      model and the function that gives its variables.

    Raises:
      InputError: if no parameter of a block is trained, or `variables` do not fit the model.
    """
    require_complete(model, "choose all trained parameters")
    values = fitted(
        named(variables), model.shapes, "variables", "take them from load_model or init() of it"
    )
    values = jax.tree.map(np.asarray, values)
    chosen = matcher(trainable)
    blocks = _pieces("blocks", model.blocks, values, chosen)
    heads = _pieces("exits", model.exits[:1] if model.shared_exit else model.exits, values, chosen)
    ends = [b for b, piece in enumerate(blocks) if piece.trained]
    require(
        bool(ends),
        f"trainable = {trainable!r}",
        f"matches no parameter of a block; there are {', '.join(list(named(values))[:4])} ...",
        "use trainable='.*' to train everything",
    )
    groups = _groups(len(blocks), ends)
    slots = [model.exit_slot(end) for end in ends[:-1]] if model.exits else []
    kept = list(dict.fromkeys(slots))

    def complete(variables: Variables) -> Variables:
        params, stats = dict(values.params), dict(values.stats)
        own, own_stats = variables.params, variables.stats
        for kind, pieces, places in (("blocks", blocks, ends), ("exits", heads, kept)):
            new = {place: pieces[place].complete(own[kind][i]) for i, place in enumerate(places)}
            params[kind] = tuple(new.get(b, old) for b, old in enumerate(params[kind]))
        new_stats = dict(zip(ends, own_stats["blocks"]))
        stats["blocks"] = tuple(new_stats.get(b, old) for b, old in enumerate(stats["blocks"]))
        return Variables(params, stats)

    return replace(
        model,
        blocks=tuple(_joined([blocks[b] for b in g], g.index(e)) for g, e in zip(groups, ends)),
        exits=tuple(_joined([heads[slot]], 0) for slot in slots),
        spec=None,
        origin=Origin(model, complete, _digest(values, blocks, heads)),
    )


def _pieces(
    kind: str, blocks: Sequence[Block], values: Variables, chosen: Callable[[str], bool]
) -> list[_Piece]:
    """The pieces of one kind, `"blocks"` or `"exits"`."""
    pieces = []
    for i, (block, params, stats) in enumerate(
        zip(blocks, values.params[kind], values.stats[kind], strict=True)
    ):
        paths = [path for path in leaf_paths(params) if chosen(".".join((kind, str(i), *path)))]
        pieces.append(_Piece(block, params, stats, frozenset(paths)))
    return pieces


def matcher(chosen: str | Callable[[str], bool], what: str = "trainable") -> Callable[[str], bool]:
    """A function of a name, from itself or from a regular expression that is searched in it.

    Args:
      chosen: function or regular expression.
      what: name of the option in an error message.

    Raises:
      InputError: if it is neither.
    """
    if callable(chosen):
        return chosen
    try:
        pattern = re.compile(chosen)
    except (re.error, TypeError) as error:
        raise InputError(
            f"{what} = {chosen!r}: must be a regular expression or a function of a name "
            f"({error}); e.g. {what} = 'bias|out'"
        ) from None
    return lambda name: pattern.search(name) is not None


def _groups(blocks: int, ends: Sequence[int]) -> list[range]:
    """The blocks of the complete model in each block of the smaller one; one of them trains."""
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], blocks])]


def _joined(pieces: Sequence[_Piece], trained: int) -> Block:
    """The pieces one after another as one block, of whose pieces number `trained` is trained."""
    main = pieces[trained]

    def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
        del key, x
        return jax.tree.map(jnp.asarray, (main.own(), main.stats))

    def apply(
        params: PyTree,
        stats: PyTree,
        x: Any,
        *,
        train: bool | Array,
        key: Array | None,
        **more: Any,
    ) -> tuple[Array, PyTree]:
        # The parameters come in the dtype of the computation, and so does the input of a head,
        # which may have none.
        dtype = jax.tree.leaves((params, x))[0].dtype
        for i, piece in enumerate(pieces):
            x = cast(x, dtype)
            own = key if key is None or len(pieces) == 1 else jax.random.fold_in(key, i)
            if i == trained:
                values = jax.tree.map(jnp.asarray, piece.complete(params, dtype))
                x, stats = piece.block.apply(values, stats, x, train=train, key=own, **more)
            else:
                values, fixed = jax.tree.map(jnp.asarray, (piece.complete({}, dtype), piece.stats))
                mode = train and not jax.tree.leaves(piece.stats)
                x = piece.block.apply(values, fixed, x, train=mode, key=own)[0]
        return x, stats

    names = [piece.block.name for piece in pieces]
    name = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
    # Constant blocks may not be able to choose their mode in the program.
    return Block(name, init, apply, main.block.traced_train and len(pieces) == 1)


def _digest(values: Variables, blocks: Sequence[_Piece], heads: Sequence[_Piece]) -> str:
    """Digest of the values and of the choice of what is trained."""
    trained = [sorted(piece.trained) for piece in (*blocks, *heads)]
    return hashlib.sha256(f"{digest(values)} {trained}".encode()).hexdigest()
