"""Everyone is given the same samples, weights and clients, and takes turns."""

import io
import json
import os
import sys

import jax
import numpy as np
import pytest
from problems import digits, fleet

from benchmarks import harness
from benchmarks.peers import compare, nets, works
from benchmarks.peers.work import Gate, load
from fedjax_het import models
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.data.federated import from_arrays
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

pytestmark = pytest.mark.slow

SIZES = (4, 8, 12, 8, 4)


WIDTHS = {
    "rates": (1.0, 0.5, 0.25),
    "levels": [0, 1, 2, 1, 2],
    "scaler": False,
    "masked_loss": False,
}


def setting(method=fedavg, **training):
    problem = Problem(mlp((64,), 10, hidden=(128, 64)), digits(SIZES), fleet(len(SIZES)))
    options = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 3, **training}
    return works.Setting("digits", "digits_mlp", problem, method, options, 2)


def text(network, **sizes):
    """Networks over symbols as in the works, but narrow, on windows of random text."""
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 11, (sum(SIZES) + 8, 8), np.int32)
    x, y = symbols[:, :7], symbols[:, 7] if "predict" in sizes else symbols[:, 1:]
    train, test = slice(0, sum(SIZES)), slice(sum(SIZES), None)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    data = from_arrays(x[train], y[train], x[test], y[test], clients=owner, num_classes=11)
    model = models.build(network, input_shape=(7,), num_classes=11, **sizes)
    options = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 3}
    return works.Setting(network, network, Problem(model, data, fleet(5)), fedavg, options, 2)


class Open:
    """A gate that lets everyone pass."""

    def ready(self):
        pass

    def after_round(self, done, evaluate):
        assert 0 <= evaluate() <= 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    one = setting()
    return one, works.record(one, tmp_path_factory.mktemp("work"), blocks=1)


def by_hand(work):
    """The work in plain JAX, client by client: what every contender must come to."""

    def logits(leaves, x):
        for i in range(0, len(leaves), 2):
            x = x @ leaves[i + 1] + leaves[i][None]
            x = jax.nn.relu(x) if i < len(leaves) - 2 else x
        return x

    def loss(leaves, x, y):
        return -jax.nn.log_softmax(logits(leaves, x))[np.arange(len(y)), y].mean()

    gradient = jax.jit(jax.grad(loss))
    model = [np.asarray(leaf) for leaf in work.leaves]
    for r in range(work.rounds):
        total, weight = [np.zeros_like(leaf) for leaf in model], [0.0] * len(model)
        for member in range(work.cohort.shape[1]):
            own = list(model)
            trained = work.leaf_block >= work.first[r, member]
            rows = work.samples(r, member)
            for batch in rows.reshape(-1, work.batch):
                grads = gradient(own, work.x[batch], work.y[batch])
                pairs = zip(own, grads, trained, strict=True)
                own = [p - np.float32(work.learning_rate) * g if t else p for p, g, t in pairs]
            for i in np.flatnonzero(trained):
                total[i] += len(rows) * np.asarray(own[i])
                weight[i] += len(rows)
        parts = zip(model, total, weight, strict=True)
        model = [t / n if n else old for old, t, n in parts]
    return model


@pytest.mark.parametrize(
    "one", [setting(), setting(fedpmt, capacity=[0.3, 0.5, 1.0, 0.5, 0.3])], ids=["all", "partial"]
)
def test_recorded_work_is_what_the_simulation_does(one, tmp_path):
    work = works.record(one, tmp_path, blocks=1)
    assert (len(np.unique(work.first)) > 1) == (one.method is fedpmt)
    result = simulate(one.algorithm(), one.problem, rounds=work.rounds, seed=works.SEED)
    ours = jax.tree.leaves(result.variables.params["blocks"])
    for expected, leaf in zip(by_hand(work), ours, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


def test_work_survives_the_disk(recorded):
    _, work = recorded
    again = load(work.folder)
    assert again.blocks == list(work.blocks) == [2, 4]
    for name in ("x", "y", "test_x", "cohort", "steps", "batches", "first", "level", "leaf_block"):
        np.testing.assert_array_equal(getattr(again, name), getattr(work, name))
    for a, b in zip(again.leaves, work.leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    assert nets.layers("digits_mlp", 10) == [tuple(layer) for layer in again.network]


def test_client_visits_its_own_samples_once_an_epoch(recorded):
    one, work = recorded
    for r, cohort in enumerate(work.cohort):
        for member, client in enumerate(cohort):
            rows = work.samples(r, member)
            assert len(set(rows)) == len(rows) == SIZES[client]
            held = one.problem.data.x[one.problem.data.client_samples(int(client))]
            assert {a.tobytes() for a in work.x[rows]} == {a.tobytes() for a in held}


def test_gate_reports_at_the_ends_of_blocks_only(recorded, monkeypatch, capfd):
    _, work = recorded
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 3))
    before = os.dup(1)
    gate = Gate(work, "someone")
    try:
        gate.ready()
        evaluated = []
        for done in (1, 2, 3, 4):
            gate.after_round(done, lambda: evaluated.append(1) or 0.5, compile_s=1.0)
        with pytest.raises(SystemExit):
            gate.ready()
        gate.finish(work.leaves)
    finally:
        os.dup2(before, 1)
        os.close(before)
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [message["event"] for message in said] == ["ready", "block", "block", "ready", "done"]
    assert [message.get("rounds") for message in said[1:3]] == [2, 4]
    assert said[1]["accuracy"] == 0.5
    assert len(evaluated) == 2


@pytest.mark.parametrize(
    "one",
    [
        setting(),
        text("char_lstm", embedding=3, units=6, predict="last"),
        text("transformer", width=8, hidden=12),
    ],
    ids=lambda one: one.network,
)
def test_torch_loop_comes_to_our_weights(one, tmp_path):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_loop import run

    work = works.record(one, tmp_path, blocks=1)
    result = simulate(one.algorithm(), one.problem, rounds=work.rounds, seed=works.SEED)
    ours = [np.asarray(a) for a in jax.tree.leaves(result.variables.params["blocks"])]
    theirs = run(work, Open(), frozen=False)
    assert compare.distance(theirs, ours) < 1e-4 * compare.distance(ours, work.leaves)


def test_torch_loop_over_slices_comes_to_our_weights(tmp_path):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_widths import run

    one = setting(heterofl, **WIDTHS)
    work = works.record(one, tmp_path, blocks=1)
    result = simulate(one.algorithm(), one.problem, rounds=work.rounds, seed=works.SEED)
    ours = [np.asarray(a) for a in jax.tree.leaves(result.variables.params["blocks"])]
    theirs = run(work, Open())
    assert compare.distance(theirs, ours) < 1e-4 * compare.distance(ours, work.leaves)


def test_work_with_widths_asks_for_fewer_flops(tmp_path):
    one = setting(heterofl, **WIDTHS)
    work = works.record(one, tmp_path, blocks=1)
    np.testing.assert_array_equal(work.level, np.asarray(WIDTHS["levels"])[work.cohort])
    assert work.shapes[1] == [[64], [64, 64], [32], [64, 32], [10], [32, 10]]
    assert load(work.folder).shapes == work.shapes
    shares = np.asarray(one.algorithm().widths.shares)
    samples = work.steps * work.batch
    full, own = float(np.sum(samples)), float(np.sum(shares[work.level] * samples))
    asked = sum(compare.step_gflop(one, work, (0, work.rounds)))
    assert asked == pytest.approx(float(one.problem.cost.step_flops()) * own / 1e9)
    assert own < 0.8 * full


def test_report_names_who_failed_and_who_differs():
    spread = harness.Spread(2.0, 1.0, 3.0)._asdict()
    row = {
        "name": "other",
        "setup_s": 1.0,
        "first_block_s": 1.0,
        "block_s": spread,
        "time_over_ours": spread,
        "gflop_per_s": spread,
        "share_of_matrix_product": spread,
        "accuracy": [0.1, 0.5],
        "compile_s": None,
        "same_method": True,
        "same_accuracy": True,
        "same_weights": False,
        "weights_apart": 0.3,
    }
    work = {
        "key": "b",
        "title": "title",
        "rounds": 3,
        "matrix_product_gflop_per_s": spread,
        "contenders": [row, {"name": "broken", "setup_s": 1.0, "failure": "no such thing"}],
    }
    text = compare.report({"machine": harness.machine(), "works": [work]})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "NO, 3e-01 apart" in text
    assert "failed: no such thing" in text
    assert len({line.count("|") for line in lines}) == 1
