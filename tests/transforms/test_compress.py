"""Compressions against NumPy and by hand: what is sent, what stays behind, how many bytes."""

import math
from fractions import Fraction

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import differ, digits_problem, exits_problem, make_chunk, scalars, windows

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Timing
from fedjax_het.transforms.compress.sparse import largest, part_of

PROBLEM = digits_problem()
TRAINING = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 4}
ALL = {
    "top_k": fh.compress.top_k(0.3),
    "random_k": fh.compress.random_k(0.3),
    "qsgd": fh.compress.qsgd(levels=3, bucket=4),
    "uniform": fh.compress.uniform(bits=3, bucket=4),
    "sign": fh.compress.sign(),
}


def upload(transformation):
    """The upload that the transformation adds to a method."""
    return transformation(fh.algorithms.fedavg(PROBLEM, **TRAINING)).uploads[0]


def start(blocks=3):
    """Parameters of three tensors, of 6, 4 and 5 values."""
    shapes = ((2, 3), (4,), (5,))[:blocks]
    params = {"blocks": tuple({"w": jnp.zeros(s)} for s in shapes), "exits": ()}
    return Variables(params, {"blocks": tuple({} for _ in shapes), "exits": ()})


def updates(clients, seed=0):
    """Random updates of these parameters, float32[clients, ...]."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal((clients, *a.shape)), jnp.float32), start().params
    )


def chunk(delta, *, weight=None, seed=0, **fields):
    count = jax.tree.leaves(delta)[0].shape[0]
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32) + jnp.uint32(100 * seed))
    weight = np.ones(count) if weight is None else weight
    return make_chunk(start(), weight, delta, key=keys)._replace(**fields)


def sent(transformation, delta, **fields):
    kept, found = jax.jit(upload(transformation).change)((), chunk(delta, **fields))
    assert kept == ()
    return found.delta


def vectors(tree):
    """The updates as rows, float32[clients, P]."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(a).reshape(a.shape[0], -1) for a in leaves], axis=1)


# ---- choosing coordinates ----------------------------------------------------------------------

_LARGEST = jax.jit(largest)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_largest_are_those_of_a_stable_sort(data):
    scores = data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 2**31 - 1]), min_size=9, max_size=9))
    allowed = np.asarray(data.draw(st.lists(st.booleans(), min_size=9, max_size=9)))
    k = data.draw(st.integers(0, int(allowed.sum())))
    order = sorted(np.flatnonzero(allowed), key=lambda i: (-scores[i], i))
    found = _LARGEST(jnp.asarray(scores, jnp.uint32), jnp.asarray(allowed), jnp.int32(k))
    assert np.flatnonzero(found).tolist() == sorted(order[:k])


@hypothesis.given(st.integers(0, 2**15), st.integers(1, 2**15), st.integers(0, 2**30))
@hypothesis.settings(deadline=None)
def test_a_part_is_rounded_up_exactly(over, under, total):
    share = Fraction(min(over, under), under)
    expected = math.ceil(share * total)
    assert part_of(share, np.int64(total)) == expected
    assert part_of(share, jnp.int32(total)) == expected


def test_top_k_sends_the_largest_of_the_whole_update():
    delta = updates(5)
    plain, found = vectors(delta), vectors(sent(fh.compress.top_k(0.3), delta))
    for row, other in zip(plain, found, strict=True):
        largest = np.argsort(-np.abs(row), kind="stable")[:5]  # ceil(0.3 * 15)
        np.testing.assert_array_equal(other, np.where(np.isin(np.arange(15), largest), row, 0))
    equal = jax.tree.map(jnp.ones_like, delta)
    np.testing.assert_array_equal(
        vectors(sent(fh.compress.top_k(0.3), equal)), np.tile(np.arange(15) < 5, (5, 1))
    )


def test_a_client_sends_a_share_of_what_it_trains():
    # Client 0 trains the last five coordinates, client 1 all fifteen.
    deep = {
        "blocks": tuple({"w": jnp.asarray([own, True])} for own in (False, False, True)),
        "exits": (),
    }
    delta = jax.vmap(fh.masks.apply)(deep, updates(2))
    for name, counts in {"top_k": (2, 5), "random_k": (2, 5), "sign": (5, 15)}.items():
        found = vectors(sent(ALL[name], delta, mask=deep))
        assert np.count_nonzero(found, axis=1).tolist() == list(counts), name
    # A mask of single coordinates counts them: ceil(0.3 * 7) of the seven of client 0.
    some = jax.tree.map(
        lambda d: jnp.stack([jnp.arange(d[0].size).reshape(d.shape[1:]) % 2 == 1] * 2), updates(2)
    )
    found = sent(ALL["top_k"], jax.vmap(fh.masks.apply)(some, updates(2)), mask=some)
    assert np.count_nonzero(vectors(found), axis=1).tolist() == [3, 3]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("feedback", [False, True])
def test_routes_and_masks_agree_and_nothing_else_is_touched(name, feedback):
    if feedback and name in ("qsgd", "uniform"):
        pytest.skip("needs no error feedback")
    made = ALL[name]
    if feedback:
        options = {"error_feedback": True} | ({} if name == "sign" else {"share": 0.3})
        made = fh.transforms.compress.COMPRESSIONS[name](**options)
    every = jnp.ones(3, bool)
    mask = {"blocks": ({"w": ~every}, {"w": every}, {"w": every}), "exits": ()}
    masked = updates(3)
    masked["blocks"][0]["w"] = jnp.zeros_like(masked["blocks"][0]["w"])
    masked = jax.tree.map(lambda d: d.at[2].set(0.0), masked)  # not finite, or padding
    routed = {**masked, "blocks": ({"w": None}, *masked["blocks"][1:])}
    change = jax.jit(upload(made).change)
    before = jax.tree.map(
        lambda a: jnp.full((4, *a.shape), 0.5, jnp.float32), start().params if feedback else ()
    )
    weight = jnp.asarray([1.0, 2.0, 0.0])
    # Padding repeats a client.
    fields = {"mask": mask, "weight": weight, "client": jnp.asarray([2, 0, 0], jnp.int32)}
    kept, found = change(before, chunk(masked, **fields))
    also_kept, also_found = change(before, chunk(routed, **fields))
    assert also_found.delta["blocks"][0]["w"] is None
    chex.assert_trees_all_equal(found.delta["blocks"][1:], also_found.delta["blocks"][1:])
    chex.assert_trees_all_equal(kept, also_kept)
    assert not np.any(found.delta["blocks"][0]["w"])
    assert not np.any(vectors(found.delta)[2])
    assert np.all(np.any(vectors(found.delta)[:2], axis=1))
    if feedback:
        residual = vectors(kept)
        np.testing.assert_array_equal(residual[[1, 3]], 0.5)
        np.testing.assert_array_equal(residual[:, :6], 0.5)
        expected = vectors(masked)[:2, 6:] + 0.5 - vectors(found.delta)[:2, 6:]
        np.testing.assert_allclose(residual[[2, 0], 6:], expected, rtol=1e-5, atol=1e-6)


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random_k", "qsgd", "uniform"])
def test_the_mean_of_what_is_sent_is_the_update(name):
    draws = 4096
    row = updates(1)
    many = jax.tree.map(lambda d: jnp.broadcast_to(d, (draws, *d.shape[1:])), row)
    found, exact = vectors(sent(ALL[name], many)).astype(np.float64), vectors(row)[0]
    error = np.abs(found.mean(axis=0) - exact)
    spread = found.std(axis=0, ddof=1)
    assert np.all(error <= 4 * spread / np.sqrt(draws) + 1e-6)
    assert np.median(spread) > 0
    if name == "random_k":
        np.testing.assert_allclose(spread, np.abs(exact) * np.sqrt(15 / 5 - 1), rtol=0.1)


def scales(row, bucket, of):
    """A scale per coordinate of the three tensors of `start`, in buckets."""
    parts = []
    for first, last in ((0, 6), (6, 10), (10, 15)):
        for at in range(first, last, bucket):
            end = min(at + bucket, last)
            parts += [of(row[at:end])] * (end - at)
    return np.asarray(parts)


@pytest.mark.parametrize(
    ("name", "of"), [("qsgd", np.linalg.norm), ("uniform", lambda x: np.max(np.abs(x)))]
)
def test_values_are_the_neighbours_on_a_grid_of_three_levels(name, of):
    delta = updates(50)
    for row, found in zip(vectors(delta), vectors(sent(ALL[name], delta)), strict=True):
        scale = scales(row, 4, of)
        level = found / scale * 3
        np.testing.assert_allclose(level, np.round(level), atol=1e-5)
        assert np.all(np.abs(level - row / scale * 3) < 1 + 1e-5)
        assert np.all(level * row >= 0)
    if name == "uniform":  # the largest of each bucket is a value of the grid
        top = np.abs(row) == scale
        np.testing.assert_allclose(found[top], row[top], rtol=1e-6)


def test_sign_sends_the_mean_magnitude():
    delta = {"blocks": tuple({"w": jnp.asarray([v])} for v in (3.0, -1.0, 0.0, -4.0)), "exits": ()}
    change = upload(fh.compress.sign()).change
    _, found = change((), make_chunk(scalars([0.0] * 4), [1.0], delta, key=None))
    assert vectors(found.delta).tolist() == [[2.0, -2.0, 2.0, -2.0]]


def test_compressions_say_truly_whether_they_may_lengthen_an_update():
    delta = updates(200)
    length = np.linalg.norm(vectors(delta), axis=1)
    for name, made in ALL.items():
        after = np.linalg.norm(vectors(sent(made, delta)), axis=1)
        assert upload(made).contracts == bool(np.all(after <= length * (1 + 1e-6))), name
    assert not upload(fh.compress.top_k(0.3, error_feedback=True)).contracts


# ---- error feedback ----------------------------------------------------------------------------


def descend(transformation, gradients, x, rate, steps):
    """Federated gradient descent from `x`; the mean of what the clients send is the step."""
    made, start = upload(transformation), scalars(x)
    count = len(gradients)
    kept = () if made.keep is None else made.keep(start, count)

    def step(carry, number):
        x, kept = carry
        delta = -rate * jnp.stack([of(x) for of in gradients])
        delta = {
            "blocks": tuple({"w": delta[:, b]} for b in range(x.size)),
            "exits": (),
        }
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), count)
        kept, found = made.change(kept, make_chunk(start, [1.0] * count, delta, key=keys))
        moved = jnp.stack([jnp.mean(block["w"]) for block in found.delta["blocks"]])
        return (x + moved, kept), x + moved

    (_, kept), path = jax.lax.scan(step, (jnp.asarray(x, jnp.float32), kept), jnp.arange(steps))
    return np.asarray(path)


def test_error_feedback_converges_where_the_largest_coordinate_alone_diverges():
    # Beznosikov et al., On Biased Compression for Distributed Learning, 2020, Example 1.
    rows = [(-3.0, 2.0, 2.0), (2.0, -3.0, 2.0), (2.0, 2.0, -3.0)]

    def gradient(a):
        a = jnp.asarray(a)
        return lambda x: 2 * jnp.dot(a, x) * a + x / 2

    functions, rate = [gradient(a) for a in rows], 0.02
    path = descend(fh.compress.top_k(0.3), functions, [1.0] * 3, rate, 100)
    np.testing.assert_allclose(path[-1], (1 + 11 / 6 * rate) ** 100, rtol=1e-4)
    fed_back = fh.compress.top_k(0.3, error_feedback=True)
    assert np.abs(descend(fed_back, functions, [1.0] * 3, rate, 1000)[-1]).max() < 1e-3


def test_error_feedback_converges_where_signs_stall():
    # Karimireddy et al. 2019, Section 3, for two least squares whose gradients have the signs
    # (+, -) or (-, +): the sum of the coordinates never changes.
    rows = [(1.5, -0.5), (-0.5, 1.5)]

    def gradient(a):
        a = jnp.asarray(a)
        return lambda x: jnp.dot(a, x) * a

    functions = [gradient(a) for a in rows]
    path = descend(fh.compress.sign(), functions, [1.0, 1.0], 0.1, 300)
    np.testing.assert_allclose(path.sum(axis=1), 2.0, rtol=1e-5)
    path = descend(fh.compress.sign(error_feedback=True), functions, [1.0, 1.0], 0.1, 300)
    assert np.abs(path[-1]).max() < 1e-3


def test_what_is_sent_and_what_is_left_add_up_to_the_updates():
    made = upload(fh.compress.random_k(0.3, error_feedback=True))
    kept, change = made.keep(start(), 4), jax.jit(made.change)
    given = arrived = 0.0
    for seed in range(5):
        delta = updates(4, seed)
        kept, found = change(kept, chunk(delta, seed=seed))
        given, arrived = given + vectors(delta), arrived + vectors(found.delta)
        assert np.count_nonzero(vectors(found.delta), axis=1).max() <= 5
    np.testing.assert_allclose(arrived + vectors(kept), given, rtol=1e-5, atol=1e-5)


def test_a_client_that_arrives_twice_in_one_chunk_sends_one_after_the_other():
    made = upload(fh.compress.top_k(0.3, error_feedback=True))
    kept, change = made.keep(start(), 3), jax.jit(made.change)
    whole = chunk(updates(4), client=jnp.asarray([1, 2, 1, 1], jnp.int32))
    together, found = change(kept, whole)
    for i in range(4):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], whole)
        kept, alone = change(kept, one)
        np.testing.assert_array_equal(vectors(alone.delta)[0], vectors(found.delta)[i])
    chex.assert_trees_all_equal(kept, together)


# ---- prices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "sizes"),
    [
        # Coordinates 974 and 90: k = 98 and 9, of 10 and 7 bits of index.
        (fh.compress.top_k(0.1), (math.ceil(98 * 42 / 8), math.ceil(9 * 39 / 8))),
        (fh.compress.top_k(0.9), (4 * 974, 4 * 90)),  # longer than the plain update
        (fh.compress.random_k(0.1), (98 * 4 + 8, 9 * 4 + 8)),
        (fh.compress.qsgd(levels=7), (974 * 4 // 8 + 2 * 4, 90 * 4 // 8 + 4)),
        (fh.compress.qsgd(levels=1, bucket=64), (math.ceil(974 * 2 / 8) + 64, 23 + 8)),
        (fh.compress.uniform(bits=8), (974 + 8, 90 + 4)),
        (fh.compress.sign(), (122 + 4, 12 + 4)),
    ],
)
def test_bytes_by_hand(made, sizes):
    none, plain = np.zeros(2), np.asarray([4 * 974, 4 * 90])
    latency_s = np.asarray([0.5, 0.0])
    timing = Timing(none, none, plain / 100 + latency_s, plain, plain, none, latency_s)
    found = upload(made).price(timing, 2)
    assert found.bytes_up.tolist() == list(sizes)
    np.testing.assert_allclose(found.upload_s, np.asarray(sizes) / 100 + latency_s)
    np.testing.assert_array_equal(found.bytes_down, plain)


# ---- runs --------------------------------------------------------------------------------------


def trained(method, problem, made, **settings):
    run = {"rounds": 2, "eval_every": 2, "seed": 4, **settings}
    return fh.simulate(fh.compose(method, made), problem, **run).variables


def test_windows_agree_masked_and_routed():
    problem = exits_problem()
    method, made = windows(problem, clients_per_round=4), ALL["random_k"]
    found = trained(method, problem, made)
    masked = trained(method, problem, made, execution="masked")
    chex.assert_trees_all_close(masked, found, rtol=1e-4, atol=1e-5)


def test_two_devices_agree_under_a_merge_of_its_own():
    method, made = fh.algorithms.fednova(PROBLEM, **TRAINING), ALL["qsgd"]
    both = trained(method, PROBLEM, made, devices=2)
    chex.assert_trees_all_close(both, trained(method, PROBLEM, made), rtol=1e-4, atol=1e-5)


def test_residuals_are_resumed_under_an_asynchronous_pace(tmp_path):
    method = fh.algorithms.fedbuff(PROBLEM, **TRAINING, buffer_size=2)
    made = fh.compress.top_k(0.1, error_feedback=True)
    run = {"workdir": tmp_path / "run", "checkpoint_every": 1}
    trained(method, PROBLEM, made, rounds=2, **run)
    resumed = trained(method, PROBLEM, made, rounds=4, **run)
    chex.assert_trees_all_equal(resumed, trained(method, PROBLEM, made, rounds=4))
    assert differ(resumed, trained(method, PROBLEM, fh.compress.top_k(0.1), rounds=4))


# ---- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fh.compress.top_k(0.0), r"share = 0.0: must be from 2\^-15 to 1"),
        (lambda: fh.compress.random_k(1.5), "share = 1.5"),
        (lambda: fh.compress.qsgd(levels=0), "levels = 0: must be an integer from 1 to 32767"),
        (lambda: fh.compress.qsgd(levels=7, bucket=0), "bucket = 0: must be at least 1"),
        (lambda: fh.compress.uniform(bits=1), "bits = 1: must be an integer from 2 to 16"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_residuals_beyond_the_bound_are_refused_before_the_run():
    made = fh.compress.sign(error_feedback=True, memory_bytes=31_000)
    method = fh.compose(fh.algorithms.fedavg(PROBLEM, **TRAINING), made)
    # 974 parameters of 4 bytes for 8 clients.
    with pytest.raises(InputError, match=r"sign with 8 clients: keeps .* 3.117e\+04 bytes"):
        fh.simulate(method, PROBLEM, rounds=1)
    assert upload(fh.compress.sign(error_feedback=True, memory_bytes=31_168)).keep


def test_compressions_in_a_configuration():
    compressed = fh.algorithms.build(
        "fedavg", PROBLEM, **TRAINING, compose=[{"name": "compress.top_k", "share": 0.1}]
    )
    assert compressed.options["compress"] == {"name": "top_k", "share": 0.1}
