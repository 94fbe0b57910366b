"""FedEL's selection against brute force, ElasticTrainer's own examples, and its defects."""

import itertools

import numpy as np
import pytest

from fedjax_het.algorithms.fedel.selection import quantise, select


def official_select(
    importance: np.ndarray, weight: np.ndarray, through: np.ndarray, budget: int
) -> tuple[np.ndarray, float]:
    """ElasticTrainer's dynamic programme, one client, inclusive chain; for comparison only.

    Three of its properties are kept (methods/fedel.md D1, D2, D3): a chain that fits whole never
    considers the first tensor; a state whose best set leaves its tensor out hides the one that
    trains it; a budget too small for anything is worth -99999.

    Args:
      importance: float64[K], input to output.
      weight: int64[K], t_w.
      through: int64[K], t_g.
      budget: units.

    Returns:
      chosen bool[K] and the value found.

    References:
      Huang et al., *ElasticTrainer*, MobiSys 2023, and its code; methods/fedel.md 1.4.
    """
    gain, own, way = (np.asarray(a)[::-1] for a in (importance, weight, through))
    beyond = np.flatnonzero(np.cumsum(way) > budget)
    considered = int(beyond[0]) if beyond.size else len(gain) - 1
    # State (j, t): the last j tensors within time t. Sets are linked through their shallowest.
    value = np.full((considered + 1, budget + 1), -99999.0)
    ends_here = np.zeros((considered + 1, budget + 1), bool)
    chosen = np.zeros((considered + 1, budget + 1, len(gain)), bool)
    ends_here[0] = True
    for j in range(1, considered + 1):
        value[j], chosen[j] = value[j - 1], chosen[j - 1]
        for before in range(j):
            step = int(own[j - 1] + np.sum(way[before:j]))
            for t in range(step, budget + 1):
                found = gain[j - 1] + (value[before, t - step] if before else 0.0)
                if ends_here[before, t - step] and found > value[j, t] and gain[j - 1] > 0:
                    value[j, t], ends_here[j, t] = found, True
                    chosen[j, t] = chosen[before, t - step]
                    chosen[j, t, j - 1] = True
    best = np.unravel_index(np.argmax(value), value.shape)
    return chosen[best][::-1], float(value[best])


def chain_of(through, convention):
    """Units of the way down to each tensor, input to output."""
    down = np.cumsum(np.asarray(through)[..., ::-1], axis=-1)[..., ::-1]
    return down - (np.asarray(through) if convention == "exclusive" else 0)


def solve(importance, weight, through, budget, convention):
    """One instance given from output to input, as in methods/fedel.md."""
    gain, own, way = (np.asarray(a)[::-1] for a in (importance, weight, through))
    chosen, value = select(
        gain[None].astype(np.float32),
        own[None].astype(np.int32),
        chain_of(way, convention)[None].astype(np.int32),
        budget,
    )
    return np.asarray(chosen)[0][::-1].astype(int).tolist(), float(value[0])


def official(importance, weight, through, budget):
    arrays = (np.asarray(a)[::-1] for a in (importance, weight, through))
    chosen, value = official_select(*arrays, budget)
    return chosen[::-1].astype(int).tolist(), value


def brute_force(gain, weight, chain, budget):
    best = 0.0
    for chosen in itertools.product([False, True], repeat=len(gain)):
        chosen = np.asarray(chosen)
        if chosen.any() and weight[chosen].sum() + chain[np.argmax(chosen)] <= budget:
            best = max(best, gain[chosen].sum())
    return best


@pytest.mark.parametrize("convention", ["exclusive", "inclusive"])
def test_equals_brute_force_on_random_instances(convention):
    # methods/fedel.md check 1: 250 instances at once, some importances negative, padded with
    # forbidden tensors.
    rng = np.random.default_rng(3)
    n, most, budget = 250, 7, 20
    size = rng.integers(1, most + 1, n)
    real = np.arange(most) < size[:, None]
    gain = np.where(real, rng.normal(0.3, 1.0, (n, most)), 1.0).astype(np.float32)
    weight = np.where(real, rng.integers(0, 9, (n, most)), 0).astype(np.int32)
    through = np.where(real, rng.integers(0, 7, (n, most)), 0)
    chain = chain_of(through, convention)
    forbidden = np.where(real, chain, 2**29).astype(np.int32)
    chosen, value = (np.asarray(a) for a in select(gain, weight, forbidden, budget))
    for i in range(n):
        k = size[i]
        best = brute_force(gain[i, :k], weight[i, :k], chain[i, :k], budget)
        assert value[i] == pytest.approx(best, abs=1e-5)
        assert not chosen[i, k:].any()
        assert gain[i][chosen[i]].sum() == pytest.approx(best, abs=1e-5)
        if chosen[i].any():
            cost = weight[i][chosen[i]].sum() + chain[i, np.argmax(chosen[i])]
            assert cost <= budget
            assert gain[i][chosen[i]].min() > 0


def test_elastic_trainers_own_example():
    # methods/fedel.md check 2: output to input.
    case = {"importance": [1, 3, 10, 5, 3], "weight": [5, 1, 7, 3, 1], "through": [0, 2, 1, 4, 0]}
    assert solve(**case, budget=14, convention="inclusive") == ([0, 1, 1, 0, 0], 13.0)
    assert solve(**case, budget=14, convention="exclusive") == ([0, 1, 1, 1, 0], 18.0)
    assert official(**case, budget=14) == ([0, 1, 1, 0, 0], 13.0)


def test_official_solver_hides_states_that_skip_their_tensor():
    # methods/fedel.md D2, check 3
    case = {"importance": [6, 1, 7, 2], "weight": [2, 1, 1, 4], "through": [0, 2, 2, 3]}
    assert solve(**case, budget=6, convention="inclusive") == ([0, 1, 1, 0], 8.0)
    assert official(**case, budget=6) == ([1, 1, 0, 0], 7.0)


def test_official_solver_never_considers_the_first_layer_if_the_chain_fits():
    # methods/fedel.md D1, check 4
    case = {"importance": [1, 1, 5], "weight": [2, 2, 2], "through": [1, 1, 1]}
    assert solve(**case, budget=9, convention="inclusive") == ([1, 1, 1], 7.0)
    assert official(**case, budget=9) == ([1, 1, 0], 2.0)


def test_official_solver_on_a_budget_too_small_for_anything():
    # methods/fedel.md D3; the exact solver is worth 0 there.
    case = {"importance": [1, 1], "weight": [5, 5], "through": [0, 1]}
    assert official(**case, budget=2) == ([0, 0], -99999.0)
    assert solve(**case, budget=2, convention="inclusive") == ([0, 0], 0.0)


def test_official_solver_is_never_better():
    rng = np.random.default_rng(8)
    for _ in range(60):
        k, budget = 6, 14
        gain = rng.uniform(0.1, 1, k).round(3)
        weight, through = rng.integers(1, 6, k), rng.integers(0, 4, k)
        chosen, value = official_select(gain, weight, through, budget)
        best = brute_force(gain, weight, chain_of(through, "inclusive"), budget)
        assert value <= best + 1e-9
        if chosen.any():
            cost = weight[chosen].sum() + chain_of(through, "inclusive")[np.argmax(chosen)]
            assert cost <= budget


def _instances(n=40, k=12, seed=0):
    rng = np.random.default_rng(seed)
    gain = rng.uniform(0.1, 1, (n, k)).astype(np.float32)
    return gain, rng.uniform(0.5, 3, (n, k)), chain_of(rng.uniform(0, 2, (n, k)), "exclusive")


def test_value_does_not_fall_with_the_budget_and_all_is_chosen_at_the_end():
    # methods/fedel.md check 6: whole units, so that the budget is the same instance cut off later.
    rng = np.random.default_rng(5)
    gain = rng.uniform(0.1, 1, (1, 9)).astype(np.float32)
    weight = rng.integers(1, 5, (1, 9)).astype(np.int32)
    chain = chain_of(rng.integers(0, 3, (1, 9)), "exclusive").astype(np.int32)
    most = int(weight.sum() + chain.max())
    value = []
    for budget in np.linspace(0, most, 8).astype(int):
        # One table for every budget: what is not to be had is added to the way.
        chosen, best = select(gain, weight, chain + np.int32(most - budget), most)
        value.append(float(best[0]))
    assert value == sorted(value)
    assert value[0] == 0.0
    assert np.asarray(chosen).all()


def test_true_cost_never_exceeds_the_budget():
    # methods/fedel.md check 6: rounding up is always feasible; rounding down is not.
    gain, weight, chain = _instances()
    budget = np.full(len(gain), 11.0)
    chosen, _ = select(gain, *quantise(weight, chain, budget, 50), 50)
    chosen = np.asarray(chosen)

    def cost(chosen):
        way = chain[np.arange(len(chosen)), np.argmax(chosen, axis=1)]
        return np.where(chosen, weight, 0).sum(axis=1) + np.where(chosen.any(axis=1), way, 0)

    assert np.all(cost(chosen) <= budget)
    floor = [np.floor(a / 11.0 * 50).astype(np.int32) for a in (weight, chain)]
    over, _ = select(gain, *floor, 50)
    assert np.any(cost(np.asarray(over)) > budget)


def test_scaled_times_with_a_scaled_budget_choose_the_same():
    # methods/fedel.md check 7
    gain, weight, chain = _instances(seed=1)
    budget = np.full(len(gain), 9.0)
    a = quantise(weight, chain, budget, 50)
    b = quantise(3.0 * weight, 3.0 * chain, 3.0 * budget, 50)
    np.testing.assert_array_equal(a, b)


def test_an_infinite_budget_affords_all_and_an_empty_one_nothing():
    gain, weight, chain = _instances(n=2)
    chain[:, 3] = np.inf
    units = quantise(weight, chain, np.asarray([np.inf, -1.0]), 50)
    chosen, value = (np.asarray(a) for a in select(gain, *units, 50))
    assert chosen[0].sum() == 11
    assert not chosen[0, 3]
    assert not chosen[1].any()
    assert value[1] == 0.0


def test_ties_prefer_the_output():
    chosen, _ = solve([1, 1, 1], [2, 2, 2], [0, 0, 0], budget=4, convention="exclusive")
    assert chosen == [1, 1, 0]
