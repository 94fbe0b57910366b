"""Measured prices: positive, storable, and able to replace the counted ones."""

import dataclasses
import json

import numpy as np
import pytest

from fedjax_het import models
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.profile import (
    format_table,
    measure,
    with_measured,
    xla_flops,
)
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import mlp

MODEL = with_exits(mlp((12,), 5, hidden=(16, 8)))
TABLE = cost_table(MODEL)


@pytest.fixture(scope="module")
def measured():
    return measure(MODEL, batch=4, repeats=3)


@pytest.fixture
def made():
    """A profile with chosen numbers: the last block takes half of the time."""
    return MeasuredProfile(
        model=MODEL.name,
        backend="cpu: test",
        batch=4,
        repeats=1,
        names=(*TABLE.names, "exit_fc1", "exit_fc2"),
        num_blocks=3,
        forward_s=(1.0, 1.0, 4.0, 0.5, 0.25),
        weight_grad_s=(2.0, 1.0, 4.0, 0.5, 0.25),
        input_grad_s=(9.0, 1.0, 2.0, 0.5, 0.5),
        xla_forward_flops=(4.0, 4.0, 4.0, 4.0, 4.0),
        xla_backward_flops=(8.0, 8.0, 8.0, 8.0, 8.0),
    )


def test_measurement(measured):
    assert measured.names == ("fc1", "fc2", "fc3", "exit_fc1", "exit_fc2")
    assert min(measured.forward_s) > 0
    assert min(measured.weight_grad_s) > 0
    assert min(measured.input_grad_s) >= 0
    # XLA sees every contraction, per batch of 4, and element-wise work on top.
    counted = 4 * TABLE.forward_flops
    assert (np.asarray(measured.xla_forward_flops[:3]) >= counted).all()
    assert (np.asarray(measured.xla_backward_flops[:3]) >= 2 * counted).all()


def test_round_trip(measured, tmp_path):
    path = tmp_path / "profile.json"
    measured.save(path)
    assert MeasuredProfile.load(path) == measured


def test_measured_prices_replace_the_counted_ones(made):
    table = with_measured(TABLE, made)
    # The same full step, so that devices keep their meaning ...
    assert float(table.step_flops()) == pytest.approx(float(TABLE.step_flops()))
    assert made.step_s == 16.0  # the input gradient of the first block is never needed
    # ... divided as measured: blocks 1, 2 | head of block 0.
    full = float(table.step_flops())
    assert float(table.step_flops(2)) == pytest.approx(full * (6 + 4) / 16)
    assert float(table.step_flops(0, 0)) == pytest.approx(full * (1 + 2 + 1.5) / 16)
    np.testing.assert_array_equal(table.param_bytes, TABLE.param_bytes)
    assert table.upload_bytes(1, 2) == TABLE.upload_bytes(1, 2)


def test_profile_of_another_model_is_refused(made):
    with pytest.raises(InputError, match="measure the same model"):
        with_measured(cost_table(mlp((12,), 5, hidden=(16,))), made)
    with pytest.raises(InputError, match="0 exit heads"):
        with_measured(cost_table(mlp((12,), 5, hidden=(16, 8))), made)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: "{",
        lambda c: "[]",
        lambda c: json.dumps({k: v for k, v in c.items() if k != "forward_s"}),
        lambda c: json.dumps({**c, "format": 99}),
        lambda c: "[" * 100_000,
        lambda c: json.dumps({**c, "forward_s": [1.0]}),
        lambda c: json.dumps({**c, "forward_s": 1.0}),
        lambda c: json.dumps({**c, "forward_s": ["1"] * 5}),
        lambda c: json.dumps({**c, "forward_s": [True] * 5}),
        lambda c: json.dumps({**c, "forward_s": [10**30] * 5}),
        lambda c: json.dumps({**c, "batch": 0}),
        lambda c: json.dumps({**c, "batch": "32"}),
        lambda c: json.dumps({**c, "num_blocks": 9}),
        lambda c: json.dumps({**c, "names": [[], 1, 2, 3, 4]}),
        lambda c: json.dumps({**c, **{k: [0.0] * 5 for k in c if k.endswith("_s")}}),
        lambda c: json.dumps({**c, "forward_s": [-1.0] * 5}),
        lambda c: json.dumps({**c, "unknown": 1}),
    ],
)
def test_damaged_profiles_are_refused(made, tmp_path, damage):
    path = tmp_path / "profile.json"
    path.write_text(damage({"format": 1, **dataclasses.asdict(made)}))
    with pytest.raises(InputError, match=r"profile\.json.*measure again"):
        MeasuredProfile.load(path)


def test_missing_profile_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        MeasuredProfile.load(tmp_path / "none.json")


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="repeats = 0"):
        measure(MODEL, 4, repeats=0)


def test_table_shows_counted_beside_measured(made):
    plain = format_table(TABLE).splitlines()
    assert len(plain) == 1 + 3 + 1
    assert plain[1].split() == ["fc1", "208", "832", "64", *plain[1].split()[4:5], *3 * ["384"]]
    both = format_table(TABLE, made).splitlines()
    assert "measured %" in both[0]
    assert both[3].split()[-1] == "40.0"  # 10 s of the 25 s of all passes
    assert "16000.000 ms per batch of 4" in both[-1]


def test_xla_flops():
    assert xla_flops(lambda a: a @ a, np.ones((8, 8), np.float32)) == 2 * 8**3


def test_xla_counts_convolutions_in_parts_whole():
    network = models.build("leaf_cnn", input_shape=(28, 28, 1), num_classes=10)
    few, many = (measure(network, batch, repeats=1) for batch in (2, 24))
    for name in ("xla_forward_flops", "xla_backward_flops"):
        ratio = np.asarray(getattr(many, name)) / np.asarray(getattr(few, name))
        np.testing.assert_allclose(ratio[:2], 12, rtol=0.02)
