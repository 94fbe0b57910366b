"""Masks are the truth, routes are a permission to skip."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import exits_problem

from fedjax_het.contract import masks
from fedjax_het.contract.masks import Route, full_route

L = 3


@pytest.fixture(scope="module")
def params():
    model = exits_problem().model
    assert model.num_blocks == L
    return model.init(jax.random.key(0)).params


def _flags(mask):
    """Per part, whether each block's tensors are trained (they agree within a block)."""
    flags = {}
    for part, blocks in mask.items():
        values = [{bool(leaf) for leaf in jax.tree.leaves(block)} for block in blocks]
        assert all(len(v) == 1 for v in values)
        flags[part] = [v.pop() for v in values]
    return flags


@pytest.mark.parametrize("first", range(L))
def test_suffix_trains_the_deepest_blocks_and_no_exit(params, first):
    flags = _flags(masks.suffix(params, jnp.int32(first)))
    assert flags == {"blocks": [b >= first for b in range(L)], "exits": [False] * (L - 1)}


def test_suffix_with_an_exit_is_a_window_and_its_head(params):
    flags = _flags(masks.suffix(params, jnp.int32(1), jnp.int32(1)))
    assert flags == {"blocks": [False, True, False], "exits": [False, True]}


def test_the_network_s_own_head_is_no_exit(params):
    explicit = masks.suffix(params, jnp.int32(0), jnp.int32(L - 1))
    chex.assert_trees_all_equal(explicit, masks.suffix(params, jnp.int32(0)))


def test_suffix_needs_only_the_structure(params):
    shapes = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal(
        masks.suffix(shapes, jnp.int32(1)), masks.suffix(params, jnp.int32(1))
    )


def test_everything_is_ones(params):
    assert all(bool(leaf) for leaf in jax.tree.leaves(masks.everything(params)))


def _routes():
    exits = [None, *range(L)]
    split = [Route(0, L - 1, cut) for cut in range(L - 1)]
    return [Route(f, e) for f in range(L) for e in exits if e is None or f <= e] + split


@pytest.mark.parametrize("route", _routes())
def test_join_is_the_inverse_of_split(params, route):
    trained, frozen = masks.split(params, route)
    joined = masks.join(trained, frozen)
    chex.assert_trees_all_equal(joined, params)
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == len(
        jax.tree.leaves(params)
    )


@pytest.mark.parametrize("route", _routes())
def test_split_trains_what_suffix_masks(params, route):
    """A route covers its own mask, leaf by leaf; without an exit all heads, at a cut its head."""
    trained = masks.split(params, route)[0]
    last = None if route.exit is None else jnp.int32(route.exit)
    mask = masks.suffix(params, jnp.int32(route.first), last)
    for part in ("blocks", "exits"):
        for b, (block, keep) in enumerate(zip(trained[part], mask[part], strict=True)):
            kept = bool(jax.tree.leaves(block))
            wanted = bool(jax.tree.leaves(keep)[0])
            head = part == "exits" and (route.exit is None or b == route.cut)
            assert kept == (wanted or head), (part, b)


def test_further_heads_of_a_route_train(params):
    trained, frozen = masks.split(params, Route(0, 2, heads=(0,)))
    assert [bool(jax.tree.leaves(head)) for head in trained["exits"]] == [True, False]
    chex.assert_trees_all_equal(masks.join(trained, frozen), params)
    route = Route(1, 2, heads=(0, 1))
    assert masks.decoded(route.code) == route
    assert full_route(L, has_exits=True).covers(route)
    assert not Route(0, 2, heads=(0,)).covers(route)
    assert Route(0, 2, heads=(0, 1)).covers(route)


def test_covering_is_a_partial_order_with_the_full_route_on_top():
    routes = _routes()
    full = full_route(L, has_exits=True)
    assert full == Route(0, None)
    assert full_route(L, has_exits=False) == Route(0, L - 1)
    for a in routes:
        assert a.covers(a)
        assert full.covers(a)
        for b in routes:
            assert a == b or not (a.covers(b) and b.covers(a))
    for a, b, c in itertools.product(routes, repeat=3):
        if a.covers(b) and b.covers(c):
            assert a.covers(c)


def test_a_covering_route_trains_at_least_as_much(params):
    def trained(route):
        split = masks.split(params, route)[0]
        paths = jax.tree.flatten_with_path(split)[0]
        return {jax.tree_util.keystr(path) for path, _ in paths}

    for a, b in itertools.permutations(_routes(), 2):
        if a.covers(b):
            assert trained(b) <= trained(a)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_apply_broadcasts_from_the_right(shape):
    rng = np.random.default_rng(0)
    keep = rng.random(shape) < 0.5
    value = rng.standard_normal((2, 3)).astype(np.float32)
    out = masks.apply({"w": jnp.asarray(keep)}, {"w": jnp.asarray(value)})["w"]
    np.testing.assert_array_equal(out, np.where(np.broadcast_to(keep, (2, 3)), value, 0))


def test_apply_keeps_missing_leaves_and_an_absent_mask():
    tree = {"a": jnp.ones(2), "b": None}
    assert masks.apply(None, tree) is tree
    out = masks.apply({"a": jnp.asarray(False), "b": jnp.asarray(True)}, tree)
    assert out["b"] is None
    np.testing.assert_array_equal(out["a"], np.zeros(2))


def test_apply_hides_what_is_not_finite():
    """0 times NaN is NaN; a mask must select, not multiply."""
    out = masks.apply({"w": jnp.asarray([True, False])}, {"w": jnp.asarray([1.0, jnp.nan])})["w"]
    np.testing.assert_array_equal(out, [1.0, 0.0])


def test_live_blocks_are_those_that_train_anything():
    yes, no = jnp.asarray(True), jnp.asarray(False)
    mask = {
        "blocks": (
            {"kernel": no, "bias": no},
            {"kernel": jnp.asarray([False, True]), "bias": no},
            {},
            {"kernel": yes},
        ),
        "exits": (),
    }
    np.testing.assert_array_equal(masks.live_blocks(mask), [False, True, False, True])
