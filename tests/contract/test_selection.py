"""Who takes part: uniform selection, and selections of one's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import nudge, scalar_problem

from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import arrivals
from fedjax_het.contract.selection import Candidates, Pool, uniform
from fedjax_het.simulation.simulate import simulate

PROBLEM = scalar_problem((3, 4, 5, 6, 7, 8))


def cohorts(result):
    steps = {row["step"] for row in result.record.clients}
    return [{r["client"] for r in result.record.clients if r["step"] == s} for s in sorted(steps)]


def test_uniform_selection_takes_everyone_equally_often_and_nobody_twice():
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for round in range(6000):
        chosen = uniform(Candidates(round, 0.0, Pool(np.arange(6)), 2, rng, PROBLEM.data.sizes))
        assert len(set(chosen.tolist())) == 2
        counts[chosen] += 1
    np.testing.assert_allclose(counts / 6000, 1 / 3, atol=0.02)


@pytest.mark.parametrize("pace", [None, arrivals(2)])
def test_a_selection_of_one_s_own_decides_who_takes_part(pace):
    def largest(candidates):
        sizes = PROBLEM.data.sizes[candidates.clients]
        return candidates.clients[np.argsort(-sizes)[: candidates.wanted]]

    method = nudge(PROBLEM, clients_per_round=2)._replace(select=largest)
    if pace is None:
        assert cohorts(simulate(method, PROBLEM, rounds=3)) == [{4, 5}] * 3
    else:
        first = cohorts(simulate(method._replace(pace=pace), PROBLEM, rounds=2))[0]
        assert first == {4, 5}


@pytest.mark.parametrize(
    "select",
    [
        lambda candidates: candidates.clients[:1],
        lambda candidates: np.repeat(candidates.clients[:1], candidates.wanted),
        lambda candidates: candidates.clients[: candidates.wanted] + 100,
    ],
)
def test_a_selection_that_breaks_its_word_is_refused(select):
    method = nudge(PROBLEM, clients_per_round=2)._replace(select=select)
    with pytest.raises(InputError, match=r"select of windows.*must be 2 different"):
        simulate(method, PROBLEM, rounds=1)


@given(
    population=st.integers(1, 30),
    absent=st.sets(st.integers(0, 29)),
    places=st.lists(st.integers(0, 29), max_size=5),
)
def test_a_pool_without_a_list_is_the_list_of_those_who_are_left(population, absent, places):
    absent = {i for i in absent if i < population}
    listed = [i for i in range(population) if i not in absent]
    few = Pool(population=population, absent=np.asarray(sorted(absent, reverse=True), np.int64))
    assert few.ids.tolist() == listed
    assert len(few) == len(listed)
    asked = np.arange(-2, population + 2)
    assert few.has(asked).tolist() == [i in listed for i in asked]
    holds = np.arange(population) % 2 == 0
    chosen = [i in listed and i % 2 == 0 for i in range(population)]
    assert few.mask(holds).tolist() == chosen
    assert Pool(few.ids).mask(holds).tolist() == chosen
    if listed:
        places = np.asarray(places, np.int64) % len(listed)
        both = few, Pool(np.asarray(listed))
        assert [p.at(places).tolist() for p in both] == [few.ids[places].tolist()] * 2
        assert both[1].has(asked).tolist() == few.has(asked).tolist()
