"""Sweeps: what is tried, who is stopped, and that interruptions change nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from malformed.case import BASE, changed, problem

from fedjax_het.common.errors import InputError
from fedjax_het.config import plain
from fedjax_het.report.metric import MetricInfo
from fedjax_het.sweeps.results import Sweep, Trial
from fedjax_het.sweeps.space import Span, SweepOptions, applied, corners, given, spaces
from fedjax_het.sweeps.store import Store
from fedjax_het.sweeps.trials import _Limit, sweep

ROOT = Path(__file__).parents[1]
RATES = {"low": 0.01, "high": 1.0, "log": True}
METHODS = {"A": {}, "B": {"name": "fedprox"}}


def settings(space, **options):
    config = changed(compare={"methods": METHODS, "seeds": (0, 1)})
    return plain({**config, "sweep": {"space": space, **options}})


def tried(space, **options):
    config = settings(space, **options)
    chosen = SweepOptions.parse(config)
    return given(spaces(config, chosen), chosen)


# ---- the space -----------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once_and_a_part_of_it_is_a_beginning():
    shared = {"algorithm": {"learning_rate": (0.1, 0.2, 0.3), "momentum": (0.0, 0.9)}}
    whole = tried(shared)
    cells = {(each["learning_rate"], each["momentum"]) for each in whole["A"]}
    assert cells == {(rate, m) for rate in (0.1, 0.2, 0.3) for m in (0.0, 0.9)}
    assert whole["A"] == whole["B"]
    assert len(whole["A"]) == 6
    assert tried(shared, trials=4)["A"] == whole["A"][:4]
    assert tried(shared, seed=1)["A"] != whole["A"]


def test_random_values_belong_to_the_number_of_the_trial():
    space = {"algorithm": {"learning_rate": RATES}, "methods": {"B": {"mu": (0.1, 1.0)}}}
    few, many = (tried(space, sampler="random", trials=n) for n in (3, 200))
    assert few["B"] == many["B"][:3]
    rates = [each["learning_rate"] for each in many["A"]]
    assert rates == [each["learning_rate"] for each in many["B"]]
    assert 0.01 <= min(rates) < 0.02
    assert 0.5 < max(rates) <= 1.0
    # Uniform in the logarithm: a median of 0.1, with a standard error of 0.15 in log10's units.
    assert abs(np.median(np.log10(rates)) + 1) < 0.3
    assert {each["mu"] for each in many["B"]} == {0.1, 1.0}


@pytest.mark.parametrize("log", [False, True])
def test_a_range_of_whole_numbers_has_both_ends(log):
    span = Span(1, 4, log=log)
    values = [span.at(share) for share in np.linspace(0, 1, 1000, endpoint=False)]
    assert set(values) == {1, 2, 3, 4}
    assert all(isinstance(value, int) for value in values)
    assert Span(0.5, 0.75).at(0.5) == 0.625


def test_values_reach_options_in_groups():
    method = {"name": "fedel", "budget": {"counts": "total"}}
    assert applied(method, {"budget.share": 0.5, "batch_size": 4}) == {
        "name": "fedel",
        "budget": {"counts": "total", "share": 0.5},
        "batch_size": 4,
    }
    assert method["budget"] == {"counts": "total"}
    assert corners({"a": (1, 2), "b": Span(3, 5)}) == [
        {"a": 1, "b": 3},
        {"a": 2, "b": 3},
        {"a": 1, "b": 3},
        {"a": 1, "b": 5},
    ]


LISTED = {"algorithm": {"learning_rate": (0.1, 0.2)}}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (
            LISTED,
            {"sampler": "grd"},
            "'grd': must be one of grid, random, tpe; did you mean 'grid'",
        ),
        (LISTED, {"sampler": "tpe"}, "sweep.trials = None with sampler 'tpe'"),
        (LISTED, {"trials": 0}, "sweep.trials = 0: must be at least 1"),
        (LISTED, {"seeds": ()}, r"sweep.seeds = \[\]: must be different"),
        (LISTED, {"seeds": (1, 7)}, r"compare.seeds = \[0, 1\]: must have none in common"),
        (LISTED, {"budget": 3}, "option of sweep 'budget'"),
        (LISTED, {"target": "fast"}, "'target' = 'fast': must be a number or None"),
        ({"run": {}}, {}, "sweep.space 'run': must be one of algorithm, methods"),
        ({"algorithm": 3}, {}, "sweep.space.algorithm = 3: must be a mapping"),
        ({"algorithm": {"rate": (1,)}}, {}, "option of sweep.space.algorithm 'rate': must be one"),
        ({"methods": {"C": {}}}, {}, "sweep.space.methods 'C': must be one of A, B"),
        ({"methods": {"A": {"mu": (1,)}}}, {}, "option of sweep.space.methods.A 'mu'"),
        ({"methods": {"A": {"momentum": (0.1,)}}}, {}, "sweep.space has no option of B"),
        ({"algorithm": {"momentum": ()}}, {}, "momentum = .*: must be a list of different"),
        ({"algorithm": {"momentum": (0.1, 0.1)}}, {}, "momentum = .*: must be a list of different"),
        ({"algorithm": {"momentum": 0.1}}, {}, "momentum = 0.1: must be a list of different"),
        ({"algorithm": {"momentum": {"low": 0.1}}}, {}, "momentum 'high' is missing"),
        ({"algorithm": {"momentum": {"low": 2, "high": 1}}}, {}, "low = 2, high = 1: must rise"),
        (
            {"algorithm": {"momentum": {"low": 0, "high": 1, "log": True}}},
            {},
            r"algorithm\.momentum: low = 0 with log = True: must be positive",
        ),
        ({"algorithm": {"momentum": {"low": "a", "high": 1}}}, {}, "'low' = 'a': must be a number"),
        ({"algorithm": {"learning_rate": RATES}}, {}, "range of learning_rate with sampler 'grid'"),
        (
            {**LISTED, "methods": {"B": {"mu": (0.1, 0.2, 0.3)}}},
            {},
            r"grids of 2 \(A\), 6 \(B\) cells: must have at least 6",
        ),
        (LISTED, {"trials": 3}, "must have at least 3"),
    ],
)
def test_a_mistake_in_the_space_is_one_line(space, options, message):
    with pytest.raises(InputError, match=message) as caught:
        tried(space, **options)
    assert "\n" not in str(caught.value)


# ---- results -------------------------------------------------------------------------------------


def over(number, value, **options):
    runs = [{"seed": 7, "final": 0.5, "virtual_s": None}]
    return Trial(number, options, value, stopped=value is None, runs=runs)


def test_the_best_is_the_fastest_of_equal_ones_the_first():
    a = [over(0, 3.0), over(1, 2.0, momentum=0.9), over(2, None), over(3, 2.0), over(4, math.inf)]
    config = settings(LISTED, target=0.9)
    found = Sweep({"A": a, "B": [over(0, 1.0)]}, 0.9, MetricInfo(), config)
    assert {label: trial.number for label, trial in found.best.items()} == {"A": 1, "B": 0}
    tuned = found.tuned["compare"]
    assert tuned["methods"]["A"] == {"name": "fedavg", "learning_rate": 0.1, "momentum": 0.9}
    assert tuned["methods"]["B"]["name"] == "fedprox"
    assert tuned["seeds"] == [0, 1]
    assert "sweep" not in found.tuned
    assert [row.split()[1] for row in found.table().splitlines()[1:6]] == ["1", "3", "0", "2", "4"]
    assert "not reached, 50.00 % at the end" in found.table()


def test_without_a_target_the_metric_s_direction_decides():
    trials = {"A": [over(0, 0.3), over(1, 0.5)]}
    for higher, number in ((True, 1), (False, 0)):
        found = Sweep(trials, None, MetricInfo("x", higher, False), settings(LISTED))
        assert found.best["A"].number == number


def test_a_method_without_a_best_trial_is_named():
    found = Sweep(
        {"A": [over(0, math.inf)], "B": [over(0, 1.0)]}, 0.9, MetricInfo(), settings(LISTED)
    )
    assert found.best["A"] is None
    with pytest.raises(
        InputError, match="sweep of A: none of 1 trials reaches 90 % with every seed"
    ):
        found.tuned  # noqa: B018


def test_a_trial_is_stopped_when_it_cannot_become_the_best():
    class Trials:
        def trials(self, label):
            return [None, over(1, 4.0), over(2, 5.0), over(3, None), over(4, math.inf), None]

    def stopped(number, now_s, *times):
        return _Limit(Trials(), "A", number, 2)([{"virtual_s": t} for t in times], now_s)

    assert not stopped(5, 7.9)
    assert stopped(5, 8.1)
    assert stopped(5, 2.1, 6.0)
    # An equal time loses against a smaller number only.
    assert stopped(5, 8.0)
    assert not stopped(0, 8.0)


# ---- optuna's storage ----------------------------------------------------------------------------


def test_a_trial_that_was_begun_keeps_its_values_in_another_process(tmp_path):
    pytest.importorskip("optuna")
    space = {"A": {"learning_rate": Span(0.01, 1.0, log=True), "steps": Span(1, 9), "x": ("a", 3)}}

    def store():
        return Store(tmp_path, space, {"A": [{}] * 14}, maximize=False, seed=3)

    first, values = store(), []
    for number in range(13):
        values.append(first.begin("A", number))
        again = store()
        assert again.begin("A", number) == values[-1]
        again.end("A", number, value=values[-1]["learning_rate"], stopped=False, runs=[])
    assert len({each["learning_rate"] for each in values}) == 13
    trials = store().trials("A")
    assert [trial.options for trial in trials[:13]] == values
    assert [trial.value for trial in trials[:13]] == [each["learning_rate"] for each in values]
    assert trials[13] is None
    # The same trials in another directory: what is drawn depends on nothing else.
    (tmp_path / "other").mkdir()
    other = Store(tmp_path / "other", space, {"A": [{}] * 14}, maximize=False, seed=3)
    for number, expected in enumerate(values):
        assert other.begin("A", number) == expected
        other.end("A", number, value=expected["learning_rate"], stopped=False, runs=[])


def test_outcomes_come_back_from_the_storage(tmp_path):
    pytest.importorskip("optuna")
    values = [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}]
    store = Store(tmp_path, {"A": {"x": (0.1, 0.2, 0.3)}}, {"A": values}, maximize=False, seed=0)
    runs = [{"seed": 1, "final": 0.25}]
    assert [store.begin("A", number) for number in range(3)] == values
    store.end("A", 0, math.inf, False, runs)
    store.end("A", 1, None, True, [])
    store.end("A", 2, None, False, runs)
    assert store.trials("A") == [
        Trial(0, values[0], math.inf, False, runs),
        Trial(1, values[1], None, True, []),
        Trial(2, values[2], None, False, runs),
    ]


def test_a_damaged_journal_is_named(tmp_path):
    pytest.importorskip("optuna")
    parts = {"A": {"x": (1, 2)}}, {"A": [{}]}, False, 0
    Store(tmp_path, *parts)
    journal = tmp_path / "trials.log"
    journal.write_bytes(b"{torn" + journal.read_bytes())
    with pytest.raises(InputError, match=r"trials\.log: is damaged \(.*\); restore it"):
        Store(tmp_path, *parts)
    journal.unlink()
    journal.mkdir()
    with pytest.raises(InputError, match=r"trials\.log: cannot be written \(Is a directory\)"):
        Store(tmp_path, *parts)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'fedjax-het\[sweep\]'"):
        sweep({}, "out")


# ---- sweeps --------------------------------------------------------------------------------------


def test_a_sweep_chooses_between_step_sizes_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    config = {
        **changed(run__rounds=2),
        "sweep": {"space": {"algorithm": {"learning_rate": (1e-6, 0.3)}}},
    }
    found = sweep(config, tmp_path)
    trials = found.trials["fedavg"]
    assert found.best["fedavg"].options == {"learning_rate": 0.3}
    assert found.tuned["compare"]["methods"] == {"fedavg": {"name": "fedavg", "learning_rate": 0.3}}
    for trial in trials:
        (run,) = trial.runs
        place = tmp_path / "trials" / "fedavg" / str(trial.number) / "seed1000"
        summary = json.loads((place / "summary.json").read_text())
        assert trial.value == run["final"] == summary["final_accuracy"]
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved == json.loads(json.dumps(found.data()))
    # Nothing runs again.
    monkeypatch.setattr("fedjax_het.sweeps.trials.Simulation", None)
    assert sweep(config, tmp_path).data() == found.data()
    config["sweep"]["seed"] = 1
    with pytest.raises(InputError, match=r"another configuration \(sweep\.seed: None -> 1\)"):
        sweep(config, tmp_path)


def test_values_that_a_method_does_not_take_are_refused_before_the_first_run(tmp_path):
    pytest.importorskip("optuna")
    config = {**BASE, "sweep": {"space": {"algorithm": {"momentum": (0.5, "high")}}}}
    with pytest.raises(InputError, match="'momentum' = 'high': must be a number"):
        sweep(config, tmp_path / "out")
    config = {**BASE, "sweep": {"space": LISTED, "target": 1.5}}
    with pytest.raises(InputError, match=r"target accuracy 1\.5: must lie in"):
        sweep(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert problem() is not None


CONFIG = """
def get_config():
    return {
        "data": {"source": "digits", "num_clients": 6, "partition": {"name": "iid"}},
        "model": {"name": "mlp", "hidden": (8,)},
        "fleet": {"name": "speed_groups"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": 40, "checkpoint_every": 2},
        "compare": {"methods": {"A": {}, "B": {"name": "fedpmt"}}, "seeds": (0, 1)},
        "sweep": {
            "space": {"algorithm": {"learning_rate": {"low": 0.01, "high": 1.0, "log": True}}},
            "sampler": "random", "trials": 3, "target": 0.8, "seeds": (7, 8),
        },
    }
"""


def begin(place, workdir, *arguments):
    (place / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "launch.sweep", f"--config={place}/config.py"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments], cwd=ROOT, env=environment
    )


@pytest.mark.slow
def test_two_workers_killed_and_resumed_find_what_one_process_finds(tmp_path):
    pytest.importorskip("optuna")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    shared = tmp_path / "shared"
    first = begin(tmp_path, shared, "--workers=2")
    until = time.monotonic() + 300
    while not list(shared.glob("trials/*/*/seed*/checkpoints/*/meta.json")):
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.01)
    # With it, its two workers.
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (shared / "sweep.json").exists()
    alone = begin(tmp_path, tmp_path / "alone")
    assert begin(tmp_path, shared, "--workers=2").wait(1200) == 0
    assert alone.wait(1200) == 0
    one, two = (
        json.loads((place / "sweep.json").read_text()) for place in (tmp_path / "alone", shared)
    )
    for label in ("A", "B"):
        mine, theirs = one["methods"][label], two["methods"][label]
        assert mine["best"] == theirs["best"]
        assert mine["trials"][mine["best"]] == theirs["trials"][theirs["best"]]
        assert [t["options"] for t in mine["trials"]] == [t["options"] for t in theirs["trials"]]
        assert len(theirs["trials"]) == 3
