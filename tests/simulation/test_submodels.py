"""Evaluation of the models of a method's kinds of clients."""

import json

import jax
import numpy as np
import pytest
from problems import SIZES, digits_problem, fleet

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.contract.submodels import SubModels
from fedjax_het.data.federated import from_arrays
from fedjax_het.models import mlp
from fedjax_het.problem import Problem
from fedjax_het.report import compare
from fedjax_het.report.submodels import submodel_values
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms.plateau import on_plateau

N = len(SIZES)
KINDS = tuple(("zero", "shallow", "global")[client % 3] for client in range(N))
SHALLOW = mlp((64,), 10, hidden=())


def zero(variables):
    return jax.tree.map(lambda a: a * 0.0, variables)


def parts_of(problem):
    """Two sub-models: the problem's with zero parameters, and a linear one with part of its own."""

    def models(state, variables):
        head = jax.tree.map(
            lambda w: (
                variables.params["blocks"][0]["Dense_0"]["kernel"][:, :10] if w.ndim == 2 else w
            ),
            SHALLOW.init(jax.random.key(0)),
        )
        return {"zero": (problem.model, zero(variables)), "shallow": (SHALLOW, head)}

    return models


def toy(problem, of_client=KINDS, method="fedavg", **options):
    algorithm = build(method, problem, learning_rate=0.1, batch_size=4, **options)
    return algorithm._replace(submodels=SubModels(parts_of(problem), of_client))


def evaluations(record):
    return [row for row in record.metrics if "accuracy" in row]


def test_every_evaluation_measures_the_sub_models():
    problem = digits_problem()
    record = simulate(toy(problem), problem, rounds=4, eval_every=2).record
    plain = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    without = simulate(plain, problem, rounds=4, eval_every=2).record
    rows = evaluations(record)
    assert len(rows) == 3
    for row, other in zip(rows, evaluations(without), strict=True):
        added = {"accuracy[zero]", "loss[zero]", "accuracy[shallow]", "loss[shallow]"}
        assert row.keys() - other.keys() == {*added, "local_accuracy"}
        same = other.keys() - {"wall_s", "compile_s", "compiled_programs"}
        assert all(row[name] == other[name] for name in same)
        assert row["loss[zero]"] == pytest.approx(np.log(10), rel=1e-6)


def test_values_are_those_of_the_models_alone():
    problem = digits_problem()
    result = simulate(toy(problem), problem, rounds=2)
    models = parts_of(problem)((), result.variables)
    model, variables = models["shallow"]
    alone = Evaluator(Problem(model, problem.data, problem.fleet))(variables)
    last = result.record.metrics[-1]
    assert last["accuracy[shallow]"] == alone["accuracy"]
    assert last["loss[shallow]"] == alone["loss"]


def test_local_metrics_are_of_each_clients_own_kind_on_its_own_samples():
    base = digits_problem().data
    owner = np.arange(len(base.test_y)) % (N - 1)  # the last client has no test samples
    ids = np.repeat(np.arange(N), SIZES)
    given = (base.x, base.y, base.test_x, base.test_y)
    data = from_arrays(*given, clients=ids, test_clients=owner, num_classes=10)
    problem = Problem(digits_problem().model, data, fleet(N))
    result = simulate(toy(problem), problem, rounds=2)
    evaluator = Evaluator(problem)
    models = parts_of(problem)((), result.variables) | {"global": (problem.model, result.variables)}
    hits = {
        name: evaluator.measured(variables, model=model)["accuracy"][0]
        for name, (model, variables) in models.items()
    }
    expected = np.mean([hits[KINDS[c]][owner == c].mean() for c in range(N - 1)])
    assert result.record.metrics[-1]["local_accuracy"] == pytest.approx(expected)
    assert len({KINDS[c] for c in range(N - 1)}) == 3


def test_kinds_are_not_needed():
    problem = digits_problem()
    record = simulate(toy(problem, None), problem, rounds=1).record
    assert "local_accuracy" not in record.metrics[-1]
    assert "final_local_accuracy" not in record.summary
    assert {*record.summary["submodels"]} == {"zero", "shallow"}


def test_one_program_for_each_model():
    problem = digits_problem()
    evaluator = Evaluator(problem)
    variables = problem.model.init(jax.random.key(0))
    for _ in range(2):
        models = parts_of(problem)((), variables)
        evaluator(variables)
        evaluator.submodels(models, KINDS, variables, "accuracy")
    assert {key[1] for key in evaluator._programs} == {problem.model, SHALLOW}
    assert len(evaluator._programs) == 2


def test_states_of_transformations_reach_the_method():
    problem = digits_problem()
    seen = []
    algorithm = build("scaffold", problem, learning_rate=0.1, batch_size=4)
    inner = algorithm.init(problem.model.init(jax.random.key(0)), jax.random.key(0))

    def models(state, variables):
        seen.append(jax.tree.structure(state))
        return parts_of(problem)(state, variables)

    algorithm = algorithm._replace(submodels=SubModels(models))
    record = simulate(on_plateau(algorithm, 2), problem, rounds=1).record
    assert "accuracy[zero]" in record.metrics[-1]
    assert {*seen} == {jax.tree.structure(inner)}


def test_resume_is_bit_for_bit(tmp_path):
    problem = digits_problem()
    options = {"eval_every": 2, "checkpoint_every": 3, "seed": 3}
    whole = simulate(toy(problem), problem, rounds=6, workdir=tmp_path / "whole", **options)
    simulate(toy(problem), problem, rounds=3, workdir=tmp_path / "parts", **options)
    parts = simulate(toy(problem), problem, rounds=6, workdir=tmp_path / "parts", **options)
    assert len(whole.record.metrics) == len(parts.record.metrics) == 7
    unstable = ("wall_s", "compile_s", "compiled_programs")
    for a, b in zip(whole.record.metrics, parts.record.metrics, strict=True):
        # The shorter run evaluated its last round as well.
        common = a.keys() & b.keys() - {*unstable}
        assert all(a[name] == b[name] for name in common)
    assert whole.record.metrics[-1].keys() == parts.record.metrics[-1].keys()
    assert whole.record.summary["submodels"] == parts.record.summary["submodels"]


def test_summaries_and_tables_show_them(tmp_path):
    problem = digits_problem()
    run = simulate(toy(problem), problem, rounds=2, workdir=tmp_path / "run").record
    last = run.metrics[-1]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("zero", "shallow"):
        assert written["submodels"][name] == {
            "accuracy": last[f"accuracy[{name}]"],
            "loss": last[f"loss[{name}]"],
        }
    assert written["final_local_accuracy"] == last["local_accuracy"]
    plain = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    other = simulate(plain, problem, rounds=2).record
    result = compare({"plain": other, "toy": run}, out_dir=tmp_path / "out")
    told = {line.strip() for line in result.table().splitlines()}
    value = run.metric.text
    assert any(line.startswith("final accuracy of shallow ") and "-" in line for line in told)
    plain_entry, entry = result.data()["methods"]
    assert "submodels" not in plain_entry
    assert entry["submodels"]["zero"]["mean"] == last["accuracy[zero]"]
    assert entry["local_accuracy"]["mean"] == last["local_accuracy"]
    assert value(result.methods[1].local) in result.table()


def test_columns_of_metrics_with_brackets_are_no_sub_models():
    row = {"f1": 0.1, "f1[macro]": 0.2, "f1[macro][a]": 0.3, "f1[a]": 0.4, "step": 1}
    found = submodel_values(row, ("f1", "f1[macro]"))
    assert found["a"] == {"f1": 0.4, "f1[macro]": 0.3}


def test_kinds_must_be_known_and_complete():
    problem = digits_problem()
    with pytest.raises(InputError, match="of_client of length 2"):
        simulate(toy(problem, KINDS[:2]), problem, rounds=1)
    with pytest.raises(InputError, match="'wide'"):
        simulate(toy(problem, ("wide", *KINDS[1:])), problem, rounds=1)
