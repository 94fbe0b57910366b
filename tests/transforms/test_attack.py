"""Attackers: what they send, that nobody else changes, and flipped labels."""

import jax
import numpy as np
import pytest
from methods import SETTINGS
from problems import assert_close, differ, digits_problem, one_round, situation

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.data.attackers import chosen
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation.evaluation import Evaluator

PROBLEM = digits_problem(hidden=(32, 24))
TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def sent(clients, *attacks, name="fedavg", **options):
    """The update that the server gets from each of these clients, by block."""
    method = fh.algorithms.build(name, PROBLEM, **TRAINING, **options)
    method = fh.compose(method, *attacks)
    engine, start = make_engine(method, PROBLEM), PROBLEM.model.init(jax.random.key(3))
    updates = []
    for client in clients:
        plan, _ = method.plan((), start, situation(PROBLEM, clients=[client]))
        model, _ = one_round(method, PROBLEM, start, plan, engine=engine)
        pairs = zip(model.params["blocks"], start.params["blocks"], strict=True)
        updates.append([flat(after) - flat(before) for after, before in pairs])
    return updates


def test_attackers_send_a_multiple_and_others_their_update():
    plain = [np.concatenate(update) for update in sent((2, 5))]
    for attacks, factors in (
        ([fh.attack.sign_flip(clients=[2])], (-1.0, 1.0)),
        (
            [
                fh.attack.scaled(factor=2.0, clients=[2]),
                fh.attack.scaled(factor=3.5, clients=[5, 2]),
            ],
            (7.0, 3.5),
        ),
    ):
        for update, factor, honest in zip(sent((2, 5), *attacks), factors, plain, strict=True):
            attacked = np.concatenate(update)
            np.testing.assert_allclose(attacked, factor * honest, rtol=1e-4, atol=1e-6)


def test_noise_has_its_deviation_where_the_client_trains():
    first, second = sent((0, 2), fh.attack.noise(deviation=0.5, clients=[0, 2]))
    for update in map(np.concatenate, (first, second)):
        # Four standard errors of the mean and of the deviation.
        assert abs(update.mean()) < 4 * 0.5 / np.sqrt(update.size)
        assert abs(update.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * update.size)
    assert np.corrcoef(np.concatenate(first), np.concatenate(second))[0, 1] < 0.1
    noise = fh.attack.noise(deviation=0.5, clients=[0])
    (partial,) = sent((0,), noise, name="fedpmt", depths=(1, 3))
    assert [bool(np.any(block)) for block in partial] == [False, False, True]
    np.testing.assert_allclose(partial[2], first[2], atol=1e-6)  # whatever the route


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prfl", "dtfl"])
def test_attacks_work_with_methods_that_send_no_updates(name):
    make, options = SETTINGS[name]
    problem = make()
    evaluator = Evaluator(problem)
    plain = fh.algorithms.build(name, problem, **options)
    method = fh.compose(plain, fh.attack.noise(deviation=0.2, share=0.25, seed=1))

    def run(method, **fields):
        return fh.simulate(
            method, problem, rounds=1, seed=4, evaluator=evaluator, **fields
        ).variables

    found = run(method)
    assert differ(found, run(plain))
    assert_close(run(method, execution="debug"), found, rtol=1e-4, atol=1e-5)


def test_a_method_that_merges_no_parameters_refuses_attacks_on_them():
    make, options = SETTINGS["fedgkt"]
    method = fh.algorithms.fedgkt(make(), **options)
    with pytest.raises(InputError, match=r"attack\.noise of fedgkt: .* send features and logits"):
        fh.compose(method, fh.attack.noise(deviation=0.2, share=0.25))


def test_a_share_is_a_number_of_clients_and_the_same_in_every_attack():
    members = chosen("x", 10, None, 0.2, 3)
    assert members.sum() == 2
    np.testing.assert_array_equal(members, chosen("y", 10, None, 0.2, 3))
    assert differ(members, chosen("x", 10, None, 0.2, 4))
    assert chosen("x", 10, None, 0.25, 0).sum() == 3
    np.testing.assert_array_equal(np.flatnonzero(chosen("x", 10, [7, 1], None, 0)), [1, 7])
    data = fh.data.flip_labels(PROBLEM.data, share=0.25, seed=3)
    wrong = [
        np.any(data.y[data.client_samples(k)] != PROBLEM.data.y[data.client_samples(k)])
        for k in range(8)
    ]
    np.testing.assert_array_equal(wrong, chosen("x", 8, None, 0.25, 3))


def test_flipped_labels_are_those_of_the_attackers_only():
    x = np.zeros((6, 2), np.float32)
    y = np.asarray([[0, -1], [1, 2], [3, 0], [0, 0], [2, 1], [3, 3]])
    data = fh.data.from_arrays(x, y, x, y, clients=[[0, 3], [1, 2], [4, 5]], num_classes=4)
    flipped = fh.data.flip_labels(data, clients=[0, 2])
    assert flipped.y.tolist() == [[3, -1], [1, 2], [3, 0], [3, 3], [1, 2], [0, 0]]
    assert flipped.test_y.tolist() == y.tolist() == data.y.tolist()
    assert flipped.fingerprint() != data.fingerprint()
    assert fh.data.flip_labels(flipped, clients=[0, 2]).y.tolist() == y.tolist()


def test_an_attacker_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"client 8 of attack\.sign_flip: must be one of the 8"):
        sent((0,), fh.attack.sign_flip(clients=[8]))
