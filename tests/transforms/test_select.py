"""The short selections, what all of them share, and methods that are given one."""

import numpy as np
import pytest
from problems import digits_problem
from selections import (
    SAMPLES,
    assert_drawn_with,
    candidates,
    counted,
    inclusion,
    seen,
    selection,
)

import fedjax_het as fh
from fedjax_het.contract.selection import Selector
from fedjax_het.engine.selecting import note, nothing_known
from fedjax_het.transforms.named import named
from fedjax_het.transforms.select import SELECTIONS
from fedjax_het.transforms.select.parts import at_share, drawn, drawn_by_samples, nth

# ---- parts ---------------------------------------------------------------------------------------


def test_clients_without_weight_are_drawn_last():
    rng = np.random.default_rng(0)
    chosen = drawn(rng, np.asarray([7, 8, 9]), np.asarray([0.0, 1.0, 2.0]), 3)
    assert chosen[-1] == 7
    assert drawn(rng, np.arange(0), np.zeros(0), 0).size == 0


def test_quantiles_are_values_in_order():
    values = np.asarray([5.0, 1.0, 3.0, 2.0, 4.0])
    assert [at_share(values, share) for share in (0, 0.1, 0.2, 0.6, 0.98, 1)] == [1, 1, 2, 4, 5, 5]


@pytest.mark.parametrize("kind", ["spread", "equal", "sorted", "periodic", "infinite"])
def test_a_value_in_order_among_many(kind):
    rng, m = np.random.default_rng(0), 3 * 4096 + 5
    values = {
        "spread": rng.lognormal(0, 2, m),
        "equal": rng.integers(0, 3, m).astype(float),
        "sorted": np.arange(m, dtype=float),
        # Every third value, by which the others would be judged, is one of the largest.
        "periodic": rng.random(m) + 10.0 * (np.arange(m) % 3 == 0),
        "infinite": np.where(rng.random(m) < 0.3, np.inf, rng.random(m)),
    }[kind]
    expected = np.sort(values)
    for place in (0, 1, 200, m // 2, m - 100, m - 1):
        assert nth(values, place) == expected[place]


# ---- by samples and by loss ----------------------------------------------------------------------


def test_weighted_selection_has_the_exact_probabilities():
    choose = selection(fh.select.weighted())
    counts = counted(6000, lambda seed: choose(candidates(2, seed=seed)), 4)
    assert_drawn_with(inclusion(SAMPLES, 2), counts, 6000)


def test_a_few_of_many_are_drawn_with_the_exact_probabilities():
    """Some heavy clients, which are drawn twice, and others that are no candidates."""
    samples = np.asarray([400, 200, 100, *[1] * 37, 300])
    clients = np.delete(np.arange(41), [1, 5])
    draws = 4000
    first, counts = np.zeros(41), np.zeros(41)
    for seed in range(draws):
        chosen = drawn_by_samples(candidates(2, samples=samples, clients=clients, seed=seed), 2)
        assert len(set(chosen)) == 2
        first[chosen[0]] += 1
        counts[chosen] += 1
    weight = samples[clients]
    assert len(clients) >= 16 * 2  # not drawn from the list of candidates
    assert_drawn_with(weight / weight.sum(), first[clients], draws)
    assert_drawn_with(inclusion(weight.tolist(), 2), counts[clients], draws)
    assert counts[[1, 5]].tolist() == [0, 0]


def test_draws_end_where_few_candidates_have_almost_no_samples():
    samples = np.asarray([1] * 40 + [10**9])
    now = {"samples": samples, "clients": np.arange(40)}
    counts = counted(2000, lambda seed: drawn_by_samples(candidates(2, seed=seed, **now), 2), 40)
    assert_drawn_with(np.full(40, 2 / 40), counts, 2000)
    # The largest client is one of each two; eight tries find no other.
    now["clients"] = np.arange(41)
    draw = lambda seed: drawn_by_samples(candidates(2, seed=seed, **now), 2)
    assert counted(2000, draw, 41)[40] == 2000


def test_power_of_choice_keeps_the_highest_losses_of_those_drawn_by_samples():
    choose = selection(fh.select.power_of_choice(d=10)).choose
    loss = [0.3, 0.9, np.nan, 0.5]
    assert choose((), candidates(3, loss=loss))[0].tolist() == [2, 1, 3]  # all are compared
    assert choose((), candidates(2, loss=loss, clients=[0, 1, 3]))[0].tolist() == [1, 3]


def test_power_of_choice_draws_its_candidates_by_samples():
    problem = digits_problem()
    method = fh.algorithms.fedavg(problem, learning_rate=0.1, clients_per_round=1)
    choose = fh.select.power_of_choice(d=2)(method).select.choose
    loss = [4.0, 3.0, 2.0, 1.0]
    counts = counted(4000, lambda seed: choose((), candidates(1, loss=loss, seed=seed))[0], 4)
    # Client i is kept if it is among the two drawn and its partner is a later one.
    pair = lambda i, j: sum(
        SAMPLES[a] / 100 * SAMPLES[b] / (100 - SAMPLES[a]) for a, b in ((i, j), (j, i))
    )
    chance = np.asarray([sum(pair(i, j) for j in range(i + 1, 4)) for i in range(4)])
    assert_drawn_with(chance, counts, 4000)


# ---- what is known, and methods ------------------------------------------------------------------


def test_the_table_of_what_is_known():
    known = nothing_known(4)
    settled = seen(
        5,
        [0, 1, 2],
        [0.5, np.nan, np.nan],
        status=["merged", "nonfinite", "dropped"],
    )
    note(known, settled._replace(duration_s=np.asarray([3.0, 4.0, 2.0])))
    np.testing.assert_array_equal(known.loss, [0.5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(known.duration_s, [3, 4, 2, np.nan])
    assert known.seen.tolist() == [5, 5, -1, -1]
    assert known.failures.tolist() == [0, 1, 1, 0]


def test_methods_compose_and_know_their_selection():
    problem = digits_problem()
    plain = fh.algorithms.fedavg(problem, learning_rate=0.1)
    by_hand = fh.compose(plain, fh.select.weighted(), fh.select.oort(cut=0.7))
    by_name = fh.algorithms.build(
        "fedavg", problem, learning_rate=0.1, select={"name": "oort", "cut": 0.7}
    )
    assert by_hand.options == by_name.options
    assert by_hand.options["select"]["name"] == "oort"
    assert by_hand.options["select"]["cut"] == 0.7
    assert by_hand.options["select"]["exploration"] == 0.9
    assert "select" not in plain.options
    assert fh.compose(plain) is plain


def test_rounds_run_in_batches_unless_the_selection_learns():
    plain = fh.algorithms.fedavg(digits_problem(), learning_rate=0.1)
    ahead = {
        name: named(options, SELECTIONS, "select")(plain).plans_ahead
        for name, options in {
            "uniform": "uniform",
            "weighted": "weighted",
            "oort": "oort",
            "power_of_choice": {"name": "power_of_choice", "d": 8},
            "tifl": "tifl",
            "fedcs": {"name": "fedcs", "deadline_s": 1.0},
        }.items()
    }
    assert set(ahead) == set(fh.transforms.select.SELECTIONS)
    assert [name for name, batches in ahead.items() if batches] == ["uniform", "weighted"]
    assert not isinstance(selection(fh.select.weighted()), Selector)
