"""Verdicts on lowerings: measured once, kept, taken up again; never how fast."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import pytest
from problems import assert_close, digits, fleet, one_round

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.engine.resources import check_resources
from fedjax_het.models import autotune, onednn
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import Conv
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import Convolution, lowering, lowering_of
from fedjax_het.models.mlp import Dense
from fedjax_het.problem import Problem
from fedjax_het.runtime import processes
from fedjax_het.runtime.compilation_cache import ENVIRONMENT
from fedjax_het.simulation.simulate import simulate

SOME = Convolution("float32", (2, 5, 5, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)))


@pytest.fixture
def path(monkeypatch, tmp_path):
    """The file of verdicts, in an empty place."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    found = autotune.file()
    assert found.parent == tmp_path / "cache"
    return found


@pytest.fixture
def measured(monkeypatch):
    """What was measured, in order; "rows" always wins."""
    calls = []

    def measure(convolution, clients):
        calls.append((convolution, clients))
        return {name: 2.0 - (name == "rows") for name in autotune.candidates(convolution, clients)}

    monkeypatch.setattr(autotune, "measure", measure)
    return calls


def verdicts(path):
    return json.loads(path.read_text())["verdicts"]


def test_verdict_is_measured_once_and_kept(path, measured):
    tuner = autotune.Tuner(path)
    assert tuner(SOME, 4) == tuner(SOME, 4) == "rows"
    assert autotune.Tuner(path)(SOME, 4) == "rows"
    assert measured == [(SOME, 4)]
    assert tuner.used == {autotune.key_of(SOME, 4): "rows"}
    kept = verdicts(path)[autotune.key_of(SOME, 4)]
    assert kept == {
        "lowering": "rows",
        "step_us": {"patches": 2e6, "rows": 1e6, "shift_add": 2e6},
    }


def test_every_part_of_the_key_counts(path, measured):
    tuner = autotune.Tuner(path)
    others = [
        SOME._replace(dtype="bfloat16"),
        SOME._replace(lhs=(3, 5, 5, 3)),
        SOME._replace(rhs=(3, 3, 3, 5)),
        SOME._replace(strides=(2, 1)),
        SOME._replace(padding=((1, 1), (0, 1))),
        SOME._replace(implicit=True),
        SOME._replace(direct=True),
    ]
    for convolution, clients in [(SOME, 4), (SOME, 5), *((other, 4) for other in others)]:
        tuner(convolution, clients)
    assert len(measured) == len(verdicts(path)) == len(tuner.used) == 2 + len(others)


def test_key_names_jax_and_the_device(monkeypatch, path, measured):
    autotune.Tuner(path)(SOME, 4)
    key = autotune.key_of(SOME, 4)
    assert f"jax {jax.__version__}, cpu: {jax.devices()[0].device_kind}, 4 x float32" in key
    # Another version of JAX neither trusts the verdict nor throws it away.
    monkeypatch.setattr(jax, "__version__", "0.0.0")
    autotune.Tuner(path)(SOME, 4)
    assert len(measured) == len(verdicts(path)) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"format": 0, "verdicts": {}}',
        b'{"format": 2, "verdicts": []}',
    ],
)
def test_file_that_cannot_be_used_is_written_anew(path, measured, caplog, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert autotune.Tuner(path)(SOME, 4) == "rows"
    assert str(path) in caplog.text
    assert list(verdicts(path)) == [autotune.key_of(SOME, 4)]


@pytest.mark.parametrize("verdict", ["rows", None, {"lowering": "implicit"}, {"lowering": 3}])
def test_verdict_that_cannot_be_had_here_is_measured_again(path, measured, verdict):
    key = autotune.key_of(SOME, 4)
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 2, "verdicts": {key: verdict, "other": {}}}))
    assert autotune.Tuner(path)(SOME, 4) == "rows"
    assert len(measured) == 1
    assert set(verdicts(path)) == {key, "other"}


def test_place_that_cannot_be_written_to_costs_the_file_only(path, measured, caplog):
    path.parent.write_text("")
    assert autotune.Tuner(path)(SOME, 4) == "rows"
    assert "cannot be written" in caplog.text


def test_nothing_is_measured_where_there_is_no_choice(path, measured):
    one = SOME._replace(rhs=(1, 1, 3, 4), padding=((0, 0), (0, 0)))
    assert autotune.Tuner(path)(one, 4) == "patches"
    assert not measured
    assert not path.exists()


def test_nothing_is_kept_with_the_cache_off(monkeypatch, measured):
    monkeypatch.setenv(ENVIRONMENT, "off")
    assert autotune.file() is None
    tuner = autotune.Tuner(None)
    assert tuner(SOME, 4) == tuner(SOME, 4) == "rows"
    assert len(measured) == 1


def test_candidates_are_those_of_the_backend(monkeypatch):
    one = SOME._replace(rhs=(1, 1, 3, 4), padding=((0, 0), (0, 0)))
    assert autotune.candidates(SOME, 1) == ("patches", "rows", "shift_add")
    assert autotune.candidates(one, 1) == ("patches",)
    direct = SOME._replace(direct=True)
    assert autotune.candidates(direct, 1) == ("patches", "rows", "shift_add", "direct")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    everything = ("patches", "rows", "shift_add", "implicit", "lax")
    assert autotune.candidates(direct._replace(implicit=True), 1) == everything
    assert autotune.candidates(one, 1) == ("patches", "lax")


@pytest.mark.parametrize("clients", [1, 2])
def test_measures_every_candidate_while_something_else_is_traced(clients):
    found = []

    @jax.jit
    @jax.vmap
    def traced(x):
        found.append(autotune.measure(SOME, clients))
        return x + 1.0

    traced(jnp.zeros(3))
    assert set(found[0]) == set(autotune.candidates(SOME, clients))
    assert all(seconds > 0 for seconds in found[0].values())


def test_candidate_that_fails_is_left_out(monkeypatch, caplog):
    def one_fails(*args, **options):
        if lowering_of(SOME) == "patches":
            raise RuntimeError("out of memory")
        return conv_general_dilated(*args, **options)

    monkeypatch.setattr(autotune, "conv_general_dilated", one_fails)
    assert "patches" not in autotune.measure(SOME, 1)
    assert "patches" in caplog.text
    monkeypatch.setattr(autotune, "candidates", lambda *_: ("patches",))
    with pytest.raises(RuntimeError, match="no lowering"):
        autotune.measure(SOME, 1)


def test_a_forced_lowering_beats_the_tuner(path, measured):
    x, w = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))

    def run(x, w):
        return conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    with autotune.choosing(autotune.Tuner(path), 1):
        with lowering("patches"):
            run(x, w)
        assert not measured
        run(x, w)
        assert measured == [(SOME._replace(direct=True, onednn=onednn.available()), 1)]
    with autotune.choosing(None, 1):
        run(x, w)
    assert len(measured) == 1


@functools.cache
def small_cnn():
    """A convolution and a linear layer on 8x8 digits."""
    blocks = (flax_block("conv", Conv(4, 2, pool=True)), flax_block("fc", Dense(10)))
    sizes = (4, 3, 4)
    model = BlockModel("small_cnn", blocks, (8, 8, 1), 10)
    return Problem(model, digits(sizes, (8, 8, 1)), fleet(len(sizes)))


def fedavg():
    return build("fedavg", small_cnn(), learning_rate=0.1, batch_size=4)


def test_cohort_trains_with_the_verdicts_for_its_chunk(path, measured):
    start = small_cnn().model.init(jax.random.key(0))
    tuned, table = (
        one_round(fedavg(), small_cnn(), start, chunk=2, convolution=convolution)[0]
        for convolution in ("tuned", "table")
    )
    assert_close(tuned, table)
    ((convolution, clients),) = measured
    assert clients == 2
    assert convolution.lhs == (4, 8, 8, 1)


def test_run_resumes_with_the_verdicts_it_began_with(path, measured, monkeypatch, tmp_path):
    options = {"rounds": 2, "chunk": 2, "convolution": "tuned", "checkpoint_every": 1}
    whole = simulate(fedavg(), small_cnn(), workdir=tmp_path / "whole", **options)
    simulate(fedavg(), small_cnn(), workdir=tmp_path / "cut", **{**options, "rounds": 1})
    assert len(measured) == 1
    # The file is lost: measured again, the device might change its mind.
    path.unlink()
    monkeypatch.setattr(autotune, "measure", lambda *_: pytest.fail("measured again"))
    resumed = simulate(fedavg(), small_cnn(), workdir=tmp_path / "cut", **options)
    chex.assert_trees_all_equal(resumed.variables.params, whole.variables.params)
    assert not path.exists()


def test_run_of_the_table_resumes_with_a_tuner_and_a_warning(path, measured, tmp_path, caplog):
    options = {"rounds": 1, "workdir": tmp_path, "chunk": 2}
    simulate(fedavg(), small_cnn(), **options)
    run = simulate(fedavg(), small_cnn(), **{**options, "rounds": 2}, convolution="tuned")
    assert len(run.record.metrics) == 3
    assert "convolution: 'table' -> 'tuned'" in caplog.text


def test_several_processes_are_told_to_take_the_table(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    check_resources("routed", None, 32, 1, "table")
    with pytest.raises(InputError, match=r"'tuned' with 2 processes.*use 'table'"):
        check_resources("routed", None, 32, 1, "tuned")
