"""The campaigns of faults in their short form, and the cases that earlier ones found."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import campaign as shared
from benchmarks.faults.campaign import Campaign, Log, Verdict, failure, generator, main

ROOT = Path(__file__).parents[1]
CAMPAIGNS = ("configurations", "files", "kills", "updates", "writes")
# Minutes for each campaign; `docs/reliability.md` has the long form.
MINUTES = os.environ.get("FEDJAX_HET_FAULTS_MINUTES", "5")


def start(name, *arguments):
    command = [sys.executable, "-m", f"benchmarks.faults.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_finds_nothing(name, tmp_path):
    done = start(name, f"--minutes={MINUTES}", f"--log={tmp_path / 'log.jsonl'}")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CAMPAIGNS if shared.kept(name)])
def test_what_campaigns_found_is_mended(name):
    done = start(name, "--replay")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def toy(limit=5):
    """Fails for sums of at least `limit`."""

    def run(case):
        total = sum(case["numbers"])
        return failure("large", str(total)) if total >= limit else Verdict("small", counts={"n": 1})

    def generate(seed, number):
        return {"numbers": generator(seed, number).integers(0, 4, 4).tolist()}

    def smaller(case):
        numbers = case["numbers"]
        for at in range(len(numbers)):
            yield {"numbers": numbers[:at] + numbers[at + 1 :]}

    return Campaign("toy", "A campaign of sums.", generate, run, smaller)


def test_a_campaign_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared, "KEPT", tmp_path / "kept")
    log = tmp_path / "log.jsonl"
    for cases in (10, 30):
        with pytest.raises(SystemExit) as ended:
            main(toy(), [f"--cases={cases}", f"--log={log}", "--keep"])
        assert ended.value.code == 1
        with log.open("a") as file:
            file.write('{"number": 3')  # torn by a kill
    rows = Log(log).rows
    assert [row["number"] for row in rows] == list(range(30))
    assert "1 kinds" in capsys.readouterr().out
    (kept,) = shared.kept("toy")
    numbers = kept["case"]["numbers"]
    assert sum(numbers) >= 5 > sum(numbers) - min(numbers)
    with pytest.raises(SystemExit) as ended:
        main(toy(), ["--replay"])
    assert ended.value.code == 1
    with pytest.raises(SystemExit) as ended:
        main(toy(limit=100), ["--replay"])
    assert ended.value.code == 0


def test_a_case_depends_on_its_seed_and_number_alone():
    make = toy().generate
    assert make(0, 7) == make(0, 7) != make(1, 7)
    assert not np.array_equal(generator(0, 1).random(3), generator(1, 0).random(3))


@pytest.mark.parametrize(
    ("turn_s", "limit_s", "answers"), [(1.0, 6.0, True), (1.0, 3.5, False), (1000.0, 60.0, True)]
)
def test_a_campaign_that_was_stopped_takes_no_fork_for_hanging(
    monkeypatch, turn_s, limit_s, answers
):
    from benchmarks.faults import processes

    class Line:
        """Answers after five turns; in the first one, the clock goes on by `turn_s`."""

        turns, now_s = 0, 0.0

        def poll(self, _):
            self.now_s += turn_s if self.turns == 0 else 1.0
            self.turns += 1
            return self.turns > 5

    line = Line()
    monkeypatch.setattr(processes.time, "monotonic", lambda: line.now_s)
    monkeypatch.setattr(processes, "_used_s", lambda _: 0.0)
    worker = processes.Worker(lambda case: case, Path(os.devnull), seconds=limit_s)
    assert worker._answers(line, 0) is answers
