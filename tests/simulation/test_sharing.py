"""Jobs that several processes share, and runs that are read back without a lock."""

import threading
import time

import pytest
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.simulation import sharing
from fedjax_het.simulation.lock import InUseError, Lock, locked
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.sharing import finished, share

GROUPS = [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(sharing, "_FIRST_S", 0.01)


def taker(root, did, work=lambda job: None):
    """Does a job once, under its lock, and marks it by a file."""

    def take(job):
        mark = root / f"{job}.done"
        if not mark.exists():
            with locked(root / job):
                work(job)
                did.append(job)
                mark.write_text(job)
        return mark.read_text().upper()

    return take


def test_one_process_does_everything_in_order(tmp_path):
    did = []
    found = share(GROUPS, taker(tmp_path, did))
    assert did == [*GROUPS[0], *GROUPS[1]]
    assert found == {job: job.upper() for job in did}
    assert share(GROUPS, taker(tmp_path, did)) == found
    assert len(did) == 6


def test_a_group_in_work_is_left_to_its_process_until_nothing_else_is_left(tmp_path):
    held, did = Lock(tmp_path / "a0"), []

    def work(job):
        if job == "a2":
            held.release()

    found = share(GROUPS, taker(tmp_path, did, work))
    assert did == ["b0", "b1", "b2", "a1", "a2", "a0"]
    assert list(found) == [*GROUPS[0], *GROUPS[1]]


def test_two_processes_do_every_job_once(tmp_path):
    """Threads in place of processes: the kernel tells two open files apart, whoever opened them."""
    did, found = ([], []), [{}, {}]

    def work(job):
        time.sleep(0.01)

    def run(i):
        found[i] = share(GROUPS, taker(tmp_path, did[i], work))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sorted(did[0] + did[1]) == [*GROUPS[0], *GROUPS[1]]
    assert did[0]
    assert did[1]


def test_it_says_for_whom_it_waits(tmp_path, caplog):
    lock, turns = Lock(tmp_path / "a0"), []

    def take(job):
        turns.append(job)
        if len(turns) == 4:
            lock.release()
        with locked(tmp_path / job):
            return job

    assert share([["a0"]], take) == {"a0": "a0"}
    assert "waiting for 1 of 1 runs: workdir = " in caplog.text
    assert len(turns) == 4


def test_other_errors_of_a_job_end_the_work(tmp_path):
    with pytest.raises(InputError, match="broken"):
        share(
            GROUPS, taker(tmp_path, [], lambda job: fh.problem.require(False, "x", "broken", "y"))
        )


# ---- runs ----------------------------------------------------------------------------------------


def test_a_finished_run_is_read_back_while_another_process_holds_its_directory(tmp_path):
    problem = digits_problem(hidden=(8,))
    method = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    options = {"rounds": 2, "chunk": 1, "workdir": tmp_path / "run"}
    config = {"run": {"rounds": 2}}

    def back(config=config, method=method, **changes):
        return finished(method, problem, config, RunOptions.parse({**options, **changes}))

    assert back() is None
    with fh.Simulation(method, problem, config=config, **options) as run:
        run.step()
        assert back() is None
        with pytest.raises(InUseError):
            fh.Simulation(method, problem, config=config, **options)
        run.step()
        record = run.record
        assert back() == record
    assert back(config={"run": {"rounds": 3}}, rounds=3) is None
    assert back(name="another") is None
    other = build("fedavg", problem, learning_rate=0.2, batch_size=4)
    with pytest.raises(InputError, match=r"options\.learning_rate: 0\.1 -> 0\.2"):
        back(method=other)
