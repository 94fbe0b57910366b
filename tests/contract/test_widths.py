"""Sub-networks by width: tensors taken, put back and added in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close

from fedjax_het.contract import widths
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.placing import Placed, add, positions
from fedjax_het.contract.widths import Axes, Layout, Span

SIZES = {"a": 4, "b": 3}
COUNTS = {"a": 2, "b": 2}
A, B, FREE = (Span("a"),), (Span("b"),), lambda n: (Span(None, n),)
# Flattened channels (two places of the units a), and a concatenation of both groups and one input.
AXES = {
    "kernel": Axes(((Span("a", outer=2),), B)),
    "bias": Axes((B,)),
    "mixed": Axes(((Span("a"), Span("b", inner=2), Span(None, 1)), FREE(5))),
    "gates": Axes((A, (Span("b", outer=3),))),
}
SHAPES = {"kernel": (8, 3), "bias": (3,), "mixed": (11, 5), "gates": (4, 9)}
LAYOUT = Layout(SIZES, Variables(AXES, {"mean": Axes((A,))}))
ORDERS = {"a": jnp.asarray([3, 1, 0, 2], jnp.int32), "b": jnp.asarray([2, 0, 1], jnp.int32)}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = Variables(SHAPES, {"mean": (4,)})
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple) and not isinstance(s, Variables),
    )


def brute_force(value, axes, orders):
    """By NumPy's own indexing of every axis."""
    value = np.asarray(value)
    for axis, spans in enumerate(axes.spans):
        found, base = [], 0
        for span in spans:
            size = SIZES.get(span.group, 1)
            units = range(1) if span.group is None else orders[span.group][: COUNTS[span.group]]
            for o in range(span.outer):
                for unit in units:
                    for i in range(span.inner):
                        found.append(base + (o * size + int(unit)) * span.inner + i)
            base += span.outer * size * span.inner
        value = np.take(value, found, axis)
    return value


@pytest.fixture(params=["prefix", "orders"])
def orders(request):
    return None if request.param == "prefix" else ORDERS


def natural(orders):
    return orders or {g: np.arange(k) for g, k in SIZES.items()}


def test_take_indexes_every_axis(orders):
    tree = tensors()
    found = widths.take(LAYOUT, COUNTS, tree, orders)
    want = jax.tree.map(
        lambda axes, value: brute_force(value, axes, natural(orders)), LAYOUT.axes, tree
    )
    assert_close(found, want, rtol=0, atol=0)


def test_put_is_the_transpose_of_take(orders):
    """Also without training, extraction and combination are the identity on what is held."""
    tree = tensors()
    own = widths.take(LAYOUT, COUNTS, tree, orders)
    back = widths.put(LAYOUT, COUNTS, own, orders)
    held = widths.members(LAYOUT, COUNTS, orders)
    want = jax.tree.map(
        lambda keep, a: jnp.where(jnp.broadcast_to(keep, a.shape), a, 0), held, tree
    )
    assert_close(back, want, rtol=0, atol=0)
    assert_close(widths.take(LAYOUT, COUNTS, back, orders), own, rtol=0, atol=0)


def test_members_count_the_coordinates_of_a_sub_network(orders):
    held = widths.members(LAYOUT, COUNTS, orders)
    own = widths.take(LAYOUT, COUNTS, tensors(), orders)
    every = jax.tree.map(lambda keep, a: jnp.broadcast_to(keep, a.shape), held, tensors())
    assert jax.tree.map(lambda a: int(a.sum()), every) == jax.tree.map(lambda a: a.size, own)


def test_add_is_a_sum_with_put(orders):
    total = tensors(1)
    own = widths.take(LAYOUT, COUNTS, tensors(2), orders)
    found = jax.jit(functools.partial(add, LAYOUT, COUNTS))(total, own, orders)
    want = jax.tree.map(jnp.add, total, widths.put(LAYOUT, COUNTS, own, orders))
    assert_close(found, want, rtol=1e-6, atol=0)


def test_placed_adds_every_client_in_its_own_places():
    stacked = {g: jnp.stack([o, jnp.roll(o, 1), jnp.flip(o)]) for g, o in ORDERS.items()}
    values = jax.vmap(lambda o: widths.take(LAYOUT, COUNTS, tensors(3), o))(stacked)
    found = Placed(LAYOUT, COUNTS, stacked).add(tensors(1), values)
    want = tensors(1)
    for i in range(3):
        one, order = jax.tree.map(lambda a, i=i: a[i], (values, stacked))
        want = jax.tree.map(jnp.add, want, widths.put(LAYOUT, COUNTS, one, order))
    assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_leaves_that_a_route_does_not_train_are_left_alone(orders):
    own = widths.take(LAYOUT, COUNTS, tensors(), orders)
    part = own._replace(params={**own.params, "kernel": None})
    assert widths.put(LAYOUT, COUNTS, part, orders).params["kernel"] is None
    found = add(LAYOUT, COUNTS, tensors(1), part, orders)
    assert_close(found.params["kernel"], tensors(1).params["kernel"], rtol=0, atol=0)


def test_narrower_clients_come_first_in_a_wider_level():
    """The units of fewer counts, taken from the tensors of a level, are those taken directly."""
    few = {"a": 1, "b": 2}
    level = widths.take(LAYOUT, COUNTS, tensors(), ORDERS)
    keep = widths.live(LAYOUT, COUNTS, {g: jnp.int32(n) for g, n in few.items()})
    direct = widths.take(LAYOUT, few, tensors(), ORDERS)
    within = Layout(COUNTS, LAYOUT.axes)
    assert_close(widths.take(within, few, level, None), direct, rtol=0, atol=0)
    lived = jax.tree.map(lambda k, a: int(jnp.broadcast_to(k, a.shape).sum()), keep, level)
    assert lived == jax.tree.map(lambda a: a.size, direct)


def test_groups_that_are_complete_are_positions_without_units():
    layout = widths.complete(LAYOUT, {"b"})
    assert layout.sizes == {"a": SIZES["a"]}
    every = {"a": COUNTS["a"], "b": SIZES["b"]}
    found = widths.take(layout, {"a": COUNTS["a"]}, tensors(), {"a": ORDERS["a"]})
    natural = {"a": ORDERS["a"], "b": jnp.arange(SIZES["b"], dtype=jnp.int32)}
    assert_close(found, widths.take(LAYOUT, every, tensors(), natural), rtol=0, atol=0)


def test_positions_of_a_prefix():
    found = positions((Span("a", outer=2), Span(None, 2)), SIZES, COUNTS, None)
    assert found.tolist() == [0, 1, 4, 5, 8, 9]
