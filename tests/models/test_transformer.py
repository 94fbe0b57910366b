"""The transformer: causality, exits per position, training in a federation, perplexity."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from fedjax_het import models
from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.common.errors import InputError
from fedjax_het.data.federated import from_arrays
from fedjax_het.fleet import presets
from fedjax_het.fleet.cost import cost_table
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

SMALL = {"layers": 1, "width": 8, "heads": 2, "hidden": 12}


def _model(length=6, symbols=5, exits=True, **changes):
    options = {**SMALL, **changes}
    return models.build("transformer", (length,), symbols, exits=exits, **options)


def _problem(**options):
    rng = np.random.default_rng(0)
    text = rng.integers(0, 5, (30, 7)).astype(np.int32)
    x, y = text[:, :-1], text[:, 1:]
    owner = np.repeat(np.arange(3), 8)
    data = from_arrays(x[:24], y[:24], x[24:], y[24:], clients=owner, num_classes=5)
    fleet = presets.build("fedel", 3, slowdowns=(1.0, 2.0, 4.0), assignment="cyclic")
    return Problem(_model(**options), data, fleet)


def test_shapes_and_causality():
    model = _model()
    variables = model.init(jax.random.key(0))
    x = jnp.asarray([[0, 1, 2, 3, 4, 0], [0, 1, 2, 4, 4, 4]], jnp.int32)
    every, _ = model.apply_exits(variables, x)
    assert every.shape == (3, 2, 6, 5)
    assert every.dtype == jnp.float32
    # The first three symbols agree, so all predictions from them do.
    np.testing.assert_allclose(every[:, 0, :3], every[:, 1, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(every[2, 0, 3:] - every[2, 1, 3:]).max() > 1e-3


def test_tensors_are_priced_in_the_order_of_the_computation():
    model = _model()
    cost = cost_table(model)
    times = tensor_times(model, cost)
    encoder = [n.split("/", 1)[1] for n in times.names if n.startswith("encoder1")]
    kernels = [n.split("/")[0] for n in encoder if n.endswith("kernel")]
    assert kernels == ["query", "key", "value", "out", "expand", "contract"]
    assert encoder[0] == "LayerNorm_0/scale"
    contractions = np.array([n.endswith("kernel") for n in times.names])
    here = times.block == 1
    total = (times.weight * contractions + times.through)[here].sum()
    assert total == pytest.approx(cost.weight_grad_flops[1] + cost.input_grad_flops[1])
    # Products of activations alone belong to nobody: they are on the way.
    assert np.all(times.through >= 0)


def test_fedel_on_text_reports_perplexity():
    problem = _problem()
    algorithm = build("fedel", problem, learning_rate=0.1, batch_size=4)
    result = simulate(algorithm, problem, rounds=1, execution="masked")
    assert result.faults == []
    row = result.record.metrics[-1]
    assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))


def test_remedies():
    with pytest.raises(InputError, match="windows of symbols"):
        models.build("transformer", (8, 8, 1), 5)
    with pytest.raises(InputError, match="divide"):
        models.build("transformer", (6,), 5, width=9, heads=2)
    with pytest.raises(InputError, match="layers"):
        models.build("transformer", (6,), 5, layers=0)


@pytest.mark.slow
def test_one_head_serves_all_exits():
    """The heads of all depths share their weights, price and mask; routes and masks agree."""
    own, shared = cost_table(_model()), cost_table(_model(exits="shared"))
    one = int(shared.exit_param_bytes[0])
    assert own.download_bytes() - shared.download_bytes() == one
    np.testing.assert_array_equal(own.upload_bytes(0, [0, 1, 2]), shared.upload_bytes(0, [0, 1, 2]))
    problem = _problem(exits="shared", layers=2)
    variables = problem.model.init(jax.random.key(0))
    assert len(variables.params["exits"]) == 1
    algorithm = build("fedel", problem, learning_rate=0.1, batch_size=4, local_steps=1)
    state = algorithm.init(variables, jax.random.key(0))
    plan, _ = algorithm.plan(state, variables, problems.situation(problem))
    # Windows of the slower devices end at two different depths; the fastest uses its own head.
    assert sorted(plan.rows["exit"]) == [1, 2, 3]
    merged = {
        execution: problems.one_round(algorithm, problem, variables, plan, execution=execution)[0]
        for execution in ("routed", "masked")
    }
    moved = [bool(np.any(a != b)) for a, b in zip(*map(_head, (merged["routed"], variables)))]
    assert all(moved)
    problems.assert_close(merged["masked"], merged["routed"], rtol=2e-5, atol=2e-6)


def _head(variables):
    return jax.tree.leaves(variables.params["exits"])


def test_blocks_of_different_shapes_cannot_share_a_head():
    with pytest.raises(InputError, match="shared exit head"):
        models.build("mlp", (64,), 10, hidden=(8, 4), exits="shared")
