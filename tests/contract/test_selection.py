"""Who takes part: uniform selection, and selections of one's own."""

import numpy as np
import pytest
from problems import nudge, scalar_problem

from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import arrivals
from fedjax_het.contract.selection import Candidates, uniform
from fedjax_het.simulation.simulate import simulate

PROBLEM = scalar_problem((3, 4, 5, 6, 7, 8))


def cohorts(result):
    steps = {row["step"] for row in result.record.clients}
    return [{r["client"] for r in result.record.clients if r["step"] == s} for s in sorted(steps)]


def test_uniform_selection_takes_everyone_equally_often_and_nobody_twice():
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for round in range(6000):
        chosen = uniform(Candidates(round, 0.0, np.arange(6), 2, rng, PROBLEM.data.sizes))
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
