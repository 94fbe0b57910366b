"""PR-FL's packed buffers: pages, rankings, and what a merge makes of them, against dense arrays."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithms.prfl.buffers import (
    RANKINGS,
    Layout,
    book,
    free_ranking,
    no_bookings,
    no_slots,
    page_size,
    release,
    rolled_back,
    unpack,
)
from fedjax_het.algorithms.prfl.merging import Merge, mask_fed_avg
from fedjax_het.algorithms.prfl.ranking import (
    flat,
    join,
    nested_mask,
    never_pruned,
    no_importance,
    prunable,
)
from fedjax_het.contract.algorithm import Chunk, Variables
from fedjax_het.contract.staleness import discount

SHAPES = ((6, 5), (5,), (5, 4), (4,))
N, CLIENTS = 50, 5
LATE = discount("polynomial", a=0.6)

draws = st.integers(0, 2**31 - 1).map(np.random.default_rng)


def model(rng):
    blocks = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in SHAPES)
    return Variables({"blocks": blocks}, {"mean": jnp.asarray(rng.random(3), jnp.float32)})


LIKE = jax.eval_shape(lambda: model(np.random.default_rng(0))).params


@functools.cache
def merging(live, masked):
    merge = mask_fed_avg(Merge("polynomial", a=0.6, masked=masked, live=live))
    return merge, jax.jit(merge.add), jax.jit(merge.finalize)


class State(NamedTuple):
    slots: Any
    booked: Any
    importance: Any
    step: Any


class Server:
    """The server's side of PR-FL, and beside it the same uploads as dense NumPy arrays."""

    def __init__(self, rng, *, pages=None, live=True, masked=True):
        self.rng, self.live, self.masked = rng, live, masked
        self.variables = model(rng)
        page = page_size(N) * 4
        self.layout = Layout(N, page, CLIENTS * -(-N // page) if pages is None else pages)
        self.merge, self.add, self.finalize = merging(live, masked)
        slots, booked = no_slots(self.variables, self.layout, CLIENTS), self.empty()
        self.state = State(slots, booked, no_importance(self.variables.params), 0)
        self.place, self.step = -1, 0
        self.tasks = {}  # client -> (version, start, rank, order, count)
        self.dense = {}  # client -> (version, discount, NaN-marked arrays)
        self.whole = np.arange(N, dtype=np.int32)
        self.rank = self.order = self.whole

    def empty(self):
        return no_bookings(self.layout, CLIENTS)

    def rerank(self):
        place = free_ranking(self.state.slots, self.state.booked)
        if place is None:
            return False
        self.order = self.rng.permutation(N).astype(np.int32)
        self.rank = np.argsort(self.order).astype(np.int32)
        ranks = self.state.slots.ranks.at[place].set(self.rank)
        self.state = self.state._replace(slots=self.state.slots._replace(ranks=ranks))
        self.place = place
        return True

    def send(self, clients):
        clients = np.asarray([c for c in clients if c not in self.tasks], np.int64)
        count = self.rng.integers(1, N + 1, clients.size)
        booked = book(self.state.booked, self.layout, clients, count, self.place)
        self.state = self.state._replace(booked=booked)
        for client, own in zip(clients, count, strict=True):
            task = (self.step, self.variables, self.rank, self.order, own)
            self.tasks[int(client)] = task

    def chunk(self, clients, finite=True):
        rows, uploads = [self.tasks.pop(c) for c in clients], []
        for client, (version, start, rank, _, count) in zip(clients, rows, strict=True):
            leaves = [leaf.size for leaf in prunable(start.params)]
            ranks = [
                jnp.asarray(part).reshape(leaf.shape)
                for part, leaf in zip(
                    np.split(rank, np.cumsum(leaves)[:-1]), prunable(start.params), strict=True
                )
            ]
            mask = nested_mask(LIKE, ranks, jnp.int32(count))
            delta = jax.tree.map(
                lambda leaf, m: jnp.where(
                    m, jnp.asarray(self.rng.standard_normal(leaf.shape)), 0.0
                ).astype(jnp.float32),
                start.params,
                mask,
            )
            stats_delta = jax.tree.map(lambda leaf: leaf * 0.25, start.stats)
            uploads.append((start, delta, stats_delta, mask))
            if finite:
                after = jax.tree.map(
                    lambda w, d, m: np.where(np.broadcast_to(m, w.shape), w + d, np.nan),
                    start.params,
                    delta,
                    mask,
                )
                stats = jax.tree.map(lambda leaf: np.asarray(leaf) * 1.25, start.stats)
                kept = self.state.booked.ranking[client] >= 0
                late = float(LATE(np.asarray(self.step - version)))
                self.dense[client] = (version, late, Variables(after, stats), kept)
        start, delta, stats_delta, mask = jax.tree.map(lambda *a: jnp.stack(a), *uploads)
        ones = jnp.ones(len(clients), jnp.float32)
        return Chunk(
            client=jnp.asarray(clients, jnp.int32),
            weight=ones if finite else 0 * ones,
            delta=delta,
            stats_delta=stats_delta,
            mask=mask,
            start=start,
            row=None,
            shared={"order": jnp.asarray(np.stack([row[3] for row in rows]))},
            staleness=jnp.asarray([self.step - row[0] for row in rows], jnp.int32),
        )

    def arrive(self, clients, finite=True):
        acc = self.merge.init(self.state._replace(step=self.step), self.variables, None)
        acc = self.add(acc, self.chunk(clients, finite))
        old = self.variables
        self.variables, info = self.finalize(acc, old, None)[:2]
        want = self.by_hand(old)
        for a, b in zip(jax.tree.leaves(self.variables), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
        booked = self.state.booked
        if finite:
            booked = release(booked, self.layout, np.asarray(clients))
        self.state = State(acc.slots, booked, acc.importance, 0)
        self.dense = {c: own for c, own in self.dense.items() if own[3]}
        self.step += 1
        self.sound()
        return info

    def by_hand(self, old):
        p = [
            float(LATE(np.asarray(self.step - version))) if self.live else late
            for version, late, _, _ in self.dense.values()
        ]

        def mean(before, *uploads):
            num, den = np.zeros(before.shape), np.zeros(before.shape)
            for weight, values in zip(p, uploads, strict=True):
                there = ~np.isnan(values)
                num += np.where(there, weight * values, 0)
                den += weight * there if self.masked else weight
            return np.where(den > 0, num / np.where(den > 0, den, 1), before)

        return jax.tree.map(mean, old, *(own[2] for own in self.dense.values()))

    def sound(self):
        """No page twice; every upload, unpacked, is the dense one bit for bit."""
        used = self.state.booked.pages
        used = used[used < self.layout.pages]
        assert len(set(used.tolist())) == used.size
        assert set(np.flatnonzero(self.state.slots.size)) == set(self.dense)
        for client, (_, _, own, _) in self.dense.items():
            booked = jax.tree.map(jnp.asarray, self.state.booked)
            got = unpack(self.state.slots, booked, jnp.int32(client), LIKE)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(own), strict=True):
                np.testing.assert_allclose(a, np.nan_to_num(b), rtol=1e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(draws, st.booleans(), st.booleans(), st.sampled_from([None, 14, 30]))
def test_packed_buffers_equal_dense_ones(rng, live, masked, pages):
    """Random arrivals, sizes, failures and rankings, with room for all or for some."""
    server = Server(rng, live=live, masked=masked, pages=pages)
    everyone = list(range(CLIENTS))
    server.send(everyone)  # before the first ranking: merged, not kept
    server.arrive(everyone)
    assert not server.dense
    for _ in range(6):
        server.rerank()
        server.send(rng.permutation(CLIENTS)[: rng.integers(1, CLIENTS + 1)])
        back = rng.permutation(sorted(server.tasks))
        server.arrive(back[: (1, 2, 4)[rng.integers(3)]].tolist(), finite=rng.random() > 0.2)


def test_the_newest_ranking_stays_while_all_are_in_use():
    server = Server(np.random.default_rng(0))
    for client in range(RANKINGS):
        assert server.rerank()
        server.send([client])
        server.arrive([client])
    before = server.rank
    assert not server.rerank()
    assert server.rank is before
    server.send([0])
    server.arrive([0])
    assert server.rerank()  # nothing refers to the first one any more


def test_rolled_back_buffers_have_room_for_who_is_at_work():
    server = Server(np.random.default_rng(1))
    server.rerank()
    server.send(range(CLIENTS))
    server.arrive(list(range(CLIENTS)))
    best, uploads = server.state, dict(server.dense)
    for _ in range(2):
        server.rerank()
        server.send(range(CLIENTS))
        server.arrive([0, 1])
    slots, booked, place = rolled_back(
        best.slots,
        best.booked,
        server.state.slots,
        server.state.booked,
        server.place,
        server.layout,
    )
    np.testing.assert_array_equal(slots.ranks[place], server.rank)
    server.state, server.place = server.state._replace(slots=slots, booked=booked), place
    server.dense = uploads
    server.sound()
    assert np.all(booked.ranking[sorted(server.tasks)] >= 0)
    server.arrive(sorted(server.tasks))  # kept, by their own rankings


@settings(deadline=None, max_examples=40)
@given(draws, st.integers(1, 60))
def test_pages_are_given_to_the_small_first_and_given_back(rng, pages):
    layout = Layout(40, 4, pages)
    booked = no_bookings(layout, 6)
    for _ in range(8):
        clients = rng.permutation(6)[: rng.integers(1, 7)]
        count = rng.integers(1, 41, clients.size)
        free = pages - np.sum(booked.pages < pages)
        held = np.sum(booked.pages[clients] < pages, axis=1)
        booked = book(booked, layout, clients, count, 0)
        now = np.sum(booked.pages[clients] < pages, axis=1)
        kept = booked.ranking[clients] == 0
        need = layout.needed(count)
        assert np.all(now[kept] >= need[kept])
        assert np.all(now[~kept] == held[~kept])
        more = need - held
        if np.any(~kept):
            left = free - np.sum(now - held)
            assert np.min(more[~kept]) > left
            assert np.max(more[kept], initial=0) <= np.min(more[~kept])
        used = booked.pages[booked.pages < pages]
        assert len(np.unique(used)) == used.size
        back = clients[: rng.integers(0, clients.size + 1)]
        booked = release(booked, layout, back)
        want = np.where(booked.ranking[back] >= 0, layout.needed(booked.size[back]), 0)
        np.testing.assert_array_equal(np.sum(booked.pages[back] < pages, axis=1), want)


def test_flat_and_back():
    params = model(np.random.default_rng(2)).params
    again = join(LIKE, flat(params), never_pruned(params))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("weights", "page"), [(50, 1), (5_000, 64), (1_663_370, 4096)])
def test_pages_are_small_against_a_model(weights, page):
    assert page_size(weights) == page
    assert page * 64 <= max(weights, 64)
