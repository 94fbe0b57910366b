"""Runs that start from a model, and the models that runs leave behind."""

import json
import re
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from malformed.case import BASE, changed
from malformed.case import problem as base_problem
from problems import assert_close, batch_norm_problem, digits_problem
from safetensors.numpy import load_file, save_file

import fedjax_het as fh
from fedjax_het import experiment
from fedjax_het.common.errors import InputError
from fedjax_het.models.saving import MODEL_FILE, named, read
from fedjax_het.simulation.saved import save_model

CONFIG = {**BASE, "run": {"rounds": 3, "checkpoint_every": 2}}


@pytest.fixture(scope="module", autouse=True)
def _without_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "write_report", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run from a configuration, and its work directory."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    return experiment.train(CONFIG, workdir), workdir


def settings(**changes):
    return {**changed(**changes), "run": {**CONFIG["run"], **changes.get("run", {})}}


# ---- what a run leaves ---------------------------------------------------------------------------


def test_a_model_is_loaded_in_two_lines(run):
    result, workdir = run
    data = base_problem().data
    trained = fh.load_model(workdir)
    outputs = trained.predict(data.test_x)
    assert outputs.dtype == np.float32
    assert outputs.shape == (len(data.test_y), 10)
    accuracy = np.mean(outputs.argmax(-1) == data.test_y)
    assert accuracy == result.record.summary["final_accuracy"]
    likelihood = jax.nn.log_softmax(outputs.astype(np.float32))
    loss = -np.mean(np.take_along_axis(np.asarray(likelihood), data.test_y[:, None], axis=1))
    assert loss == pytest.approx(result.record.metrics[-1]["loss"], rel=1e-5)
    chex.assert_trees_all_equal(trained.variables, result.variables)


def test_a_result_is_saved_as_its_directory_is(run, tmp_path):
    result, workdir = run
    # Often, because the library writes metadata in any order.
    for _ in range(8):
        result.save(tmp_path / "m.safetensors")
        assert (tmp_path / "m.safetensors").read_bytes() == (workdir / MODEL_FILE).read_bytes()
    with pytest.raises(InputError, match="cannot be written"):
        result.save(tmp_path / "gone" / "m.safetensors")


def test_predictions_do_not_depend_on_the_pass(run):
    trained = fh.load_model(run[1] / MODEL_FILE)
    x = base_problem().data.test_x[:11]
    assert_close(trained.predict(x, batch=4), trained.predict(x))
    assert_close(trained.predict(x[3:4])[0], trained.predict(x)[3])


def test_stored_samples_are_normalised_as_recorded(tmp_path):
    """Pixels of 0..255, a mean and a deviation, and a model with exits and statistics."""
    base = batch_norm_problem(exits=True)
    pixels = (base.data.x * 255).astype(np.uint8)
    data = fh.data.from_arrays(
        pixels,
        base.data.y,
        pixels[:6],
        base.data.y[:6],
        clients=np.repeat(np.arange(3), base.data.count),
        num_classes=10,
        normalise=(0.25, 0.5),
    )
    problem = replace(base, data=data)
    variables = base.model.init(jax.random.key(2))
    save_model(tmp_path / "m.safetensors", problem, variables)
    trained = fh.load_model(tmp_path / "m.safetensors", model=base.model)
    inputs = (pixels.astype(np.float32) / 255 - 0.25) / 0.5
    wanted, _ = base.model.apply(variables, jnp.asarray(inputs))
    assert_close(trained.predict(pixels), np.asarray(wanted), rtol=1e-4, atol=1e-5)
    for x, words in [
        (pixels.astype(np.float32), "x of dtype float32: must be uint8"),
        (pixels[:0], r"x is uint8\[0, 64\]: must be"),
        (pixels[:, :9], r"x = float32\[\d+, 9\]: model 'batch_norm_mlp' takes"),
    ]:
        with pytest.raises(InputError, match=words):
            trained.predict(x)


@pytest.mark.parametrize("options", [{"exits": True}, {"compute_dtype": "bfloat16"}])
def test_models_by_name_are_made_again(tmp_path, options):
    problem = replace(
        digits_problem(), model=fh.models.build("mlp", (64,), 10, hidden=(8,), **options)
    )
    variables = problem.model.init(jax.random.key(2))
    save_model(tmp_path / "m.safetensors", problem, variables)
    trained = fh.load_model(tmp_path / "m.safetensors")
    assert len(trained.model.exits) == int("exits" in options)
    assert trained.model.compute_dtype == problem.model.compute_dtype
    chex.assert_trees_all_equal(trained.variables, variables)


def test_other_models_must_be_given(tmp_path):
    problem = digits_problem()
    variables = problem.model.init(jax.random.key(2))
    path = tmp_path / "m.safetensors"
    save_model(path, problem, variables)
    with pytest.raises(InputError, match=r"'mlp', which models\.build did not make"):
        fh.load_model(path)
    chex.assert_trees_all_equal(fh.load_model(path, problem.model).variables, variables)
    with pytest.raises(InputError, match=r"differently shaped \(blocks.0.Dense_0.bias \[12\] for"):
        fh.load_model(path, digits_problem(hidden=(13, 8)).model)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="does not say how its model was made"):
        fh.load_model(tmp_path / "plain.safetensors")


# ---- runs that start from a model ----------------------------------------------------------------


def test_a_run_starts_from_another_one(run, tmp_path):
    """The first evaluation is the last of the other run; a file, a directory, variables."""
    result, workdir = run
    problem = base_problem()
    method = fh.algorithms.fedprox(problem, learning_rate=0.1, deadline_s=1e3)
    runs = [
        fh.simulate(method, problem, rounds=1, initial=initial)
        for initial in (str(workdir), workdir / MODEL_FILE, result.variables)
    ]
    first, last = runs[0].record.metrics[0], result.record.metrics[-1]
    assert first["step"] == 0
    for name in ("accuracy", "loss"):
        assert first[name] == last[name]
    for other in runs[1:]:
        chex.assert_trees_all_equal(other.variables, runs[0].variables)


def test_seeds_share_the_start(run):
    result, workdir = run
    problem = base_problem()
    method = fh.algorithms.fedavg(problem, learning_rate=0.1, clients_per_round=2)
    runs = fh.simulate(method, problem, rounds=1, seeds=(0, 1), initial=workdir)
    starts = [one.record.metrics[0] for one in runs]
    assert {start["loss"] for start in starts} == {result.record.metrics[-1]["loss"]}
    ends = [one.record.metrics[-1]["loss"] for one in runs]
    assert ends[0] != ends[1]


def test_a_resumed_run_has_the_same_start(run, tmp_path):
    _, workdir = run
    arrays, place = load_file(workdir / MODEL_FILE), tmp_path / "start.safetensors"
    save_file(arrays, place)

    def go_on(rounds, place=place, workdir=tmp_path / "run"):
        initial = {} if place is None else {"initial": str(place)}
        return experiment.train(
            {**CONFIG, "run": {**CONFIG["run"], "rounds": rounds, **initial}},
            workdir,
            base_problem(),
        )

    go_on(2)
    digest = json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["initial"]
    save_file({name: array + np.float32(1e-3) for name, array in arrays.items()}, place)
    with pytest.raises(InputError, match=f"initial: '{digest}' -> '"):
        go_on(4)
    with pytest.raises(InputError, match=f"initial: '{digest}' -> None"):
        go_on(4, None)
    place.unlink()
    resumed = go_on(4)  # it needs the file no more
    save_file(arrays, tmp_path / "moved.safetensors")
    whole = go_on(4, tmp_path / "moved.safetensors", tmp_path / "whole")
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    for path in (tmp_path / "run" / "checkpoints").glob("*/digest.json"):
        path.unlink()
    with pytest.raises(InputError, match="has no checkpoint from which it could continue"):
        go_on(4)


def test_what_does_not_fit_is_listed(run):
    _, workdir = run
    problem = digits_problem()
    method = fh.algorithms.fedavg(problem, learning_rate=0.1)
    with pytest.raises(InputError) as caught:
        fh.simulate(method, problem, rounds=1, initial=workdir)
    message = str(caught.value)
    assert "missing (blocks.2.Dense_0.bias, blocks.2.Dense_0.kernel)" in message
    assert "blocks.0.Dense_0.kernel [64, 8] for [64, 12]" in message
    assert "start from a model with the same blocks" in message


# ---- configurations that train a part ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, "blocks"),
        ({"trainable": "bias"}, "bias"),
        ({"lora": {"rank": 2, "alpha": 2}, "trainable": r"1\.Dense_0\.bias"}, "kernel|1.*bias"),
    ],
)
def test_a_model_section_names_the_start_and_the_part(run, tmp_path, options, trained):
    result, workdir = run
    config = settings(model={**BASE["model"], "start": str(workdir), **options})
    config["run"]["rounds"] = 1
    tuned = experiment.train(config, tmp_path / "tuned")
    assert tuned.record.metrics[0]["loss"] == pytest.approx(
        result.record.metrics[-1]["loss"], rel=1e-6
    )
    before, after = named(result.variables), named(fh.load_model(tmp_path / "tuned").variables)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if re.search(trained, name)}
    saved = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert len(saved["identity"]["constants"]) == 64
    assert "start" not in saved["identity"]["settings"]["model"]
    assert saved["model"]["start"] == str(workdir)


def test_a_part_of_another_model_is_another_run(run, tmp_path):
    """The values that are not trained belong to the run: another start is refused by name."""
    _, workdir = run
    arrays = load_file(workdir / MODEL_FILE)
    config = settings(model={**BASE["model"], "start": str(tmp_path / "s"), "trainable": "bias"})
    save_file(arrays, tmp_path / "s")
    experiment.train(config, tmp_path / "run")
    arrays["blocks.0.Dense_0.kernel"][0, 0] += 1
    save_file(arrays, tmp_path / "s")
    with pytest.raises(InputError, match="constants: '"):
        experiment.train(config, tmp_path / "run")


def test_files_are_for_complete_models(run):
    _, workdir = run
    base = base_problem()
    start = fh.load_model(workdir)
    problem = replace(base, model=fh.models.freeze(start.model, start.variables, "bias"))
    method = fh.algorithms.fedavg(problem, learning_rate=0.1)
    with pytest.raises(InputError, match="with a model from freeze or lora: is given to the compl"):
        fh.simulate(method, problem, rounds=1, initial=workdir)
    one = fh.simulate(method, problem, rounds=1)
    two = fh.simulate(method, problem, rounds=1, initial=one.variables)
    assert two.record.metrics[0]["loss"] == one.record.metrics[-1]["loss"]


def saved(directory):
    """A model in a file: its path, its arrays, and what it says of itself."""
    base, path = base_problem(), directory / "m.safetensors"
    save_model(path, base, base.model.init(jax.random.key(0)))
    arrays, metadata = read(path, "place")
    return path, arrays, json.loads(metadata["fedjax_het"])


METADATA = {
    "name": 5,
    "spec": ["mlp"],
    "mean": [0.1, 0.2],
    "std": [0.0],
    "inputs": [["uint8"]],
}


@pytest.mark.parametrize("name", METADATA)
def test_what_a_file_says_of_its_model_is_checked(name, tmp_path):
    """Values of another kind, in the metadata of a file whose arrays are sound."""
    path, arrays, about = saved(tmp_path)
    for value in (METADATA[name], None, -1, [10**200], [None]):
        told = json.dumps({**about, name: value})
        save_file(arrays, path, {"fedjax_het": told})
        with pytest.raises(InputError, match="place = "):
            fh.load_model(tmp_path / "m.safetensors")
    for told in ("[" * 100_000, "[]", '{"name": 1e999}'):
        save_file(arrays, path, {"fedjax_het": told})
        with pytest.raises(InputError, match="place = "):
            fh.load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": "abc"},
        {"input_shape": [0]},
        {"input_shape": [-8, 8, 1]},
        {"input_shape": [8, [8], 1]},
        {"num_classes": -1},
        {"num_classes": None},
        {"num_classes": [10]},
        {"hidden": [10**9]},
        {"name": "other"},
        {"unknown": 1},
    ],
)
def test_a_model_that_cannot_be_made_again_is_refused(change, tmp_path):
    path, arrays, about = saved(tmp_path)
    save_file(
        arrays, path, {"fedjax_het": json.dumps({**about, "spec": {**about["spec"], **change}})}
    )
    with pytest.raises(InputError):
        fh.load_model(path)
