"""One run at a time in a work directory; a process that is gone stops nobody."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys

import pytest
from disk import refusing
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.simulation import lock as locks
from fedjax_het.simulation.lock import NAME, OWNER, Lock, holder, locked

OPTIONS = {"rounds": 2, "chunk": 1, "checkpoint_every": 1}

# What holds the lock for another process; it needs nothing but the file.
HOLDER = """
import fcntl, json, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of the directory."""
    told = json.dumps({"host": "elsewhere", "process": 12, "since": "Tuesday"})
    command = [sys.executable, "-c", HOLDER, str(tmp_path / NAME), told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.fixture(params=["kernel", "name"])
def kind(request, monkeypatch):
    """Both kinds of locks: that of the kernel, and that of a file system without."""
    if request.param == "name":
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    return request.param


def told(directory, kind, **changes):
    """Leaves the file of a lock that nobody released."""
    content = {**locks._this_process(), **changes}
    (directory / (NAME if kind == "kernel" else OWNER)).write_text(json.dumps(content))


def test_it_is_held_until_it_is_released(tmp_path, kind):
    one = Lock(tmp_path)
    with pytest.raises(InputError, match="close the earlier simulation") as caught:
        Lock(tmp_path)
    assert re.fullmatch(r"[^\n]+: is in use by process \d+ of [^\n]+; [^\n]+", str(caught.value))
    assert f"process {os.getpid()} of" in str(caught.value)
    one.release()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path), pytest.raises(InputError):
        Lock(tmp_path)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_message_names_the_process_that_holds_it(tmp_path, other):
    words = r"in use by process 12 of elsewhere since Tuesday; wait .* delete .*\.lock"
    with pytest.raises(InputError, match=words):
        Lock(tmp_path)


def test_a_killed_process_stops_nobody(tmp_path, other, caplog):
    other.kill()
    other.wait()
    with locked(tmp_path):
        # Where the kernel's locks end at a host, that process may still run.
        assert "was not released by process 12 of elsewhere since Tuesday" in caplog.text


def test_the_holder_is_seen_without_touching_the_lock(tmp_path, kind):
    assert holder(tmp_path) is None
    with locked(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        who, gone = holder(tmp_path)
        assert who.startswith(f"process {os.getpid()} of ")
        assert not gone
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert holder(tmp_path) is None


def test_a_killed_holder_is_gone_and_a_distant_one_is_not_known_to_be(tmp_path, kind):
    told(tmp_path, kind, host="elsewhere", process=2**22)
    assert holder(tmp_path).gone is False
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        told(tmp_path, kind, process=process.pid, started=locks._started(process.pid))
        assert holder(tmp_path).gone is False
        process.kill()
    assert holder(tmp_path).gone is True


def test_a_lock_that_was_broken_belongs_to_whoever_takes_it_next(tmp_path, kind):
    first = Lock(tmp_path)
    for name in (NAME, OWNER):
        (tmp_path / name).unlink(missing_ok=True)
    second = Lock(tmp_path)
    first.release()
    with pytest.raises(InputError, match="in use"):
        Lock(tmp_path)
    second.release()


@pytest.mark.parametrize("gone", [{"process": 2**22 + 1}, {"started": "1"}, {"process": "x"}])
def test_a_dead_process_of_this_host_is_taken_over(tmp_path, kind, gone, caplog):
    """Also if its number is that of another process by now."""
    told(tmp_path, kind, **gone)
    with locked(tmp_path):
        assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "alive", [{"host": "elsewhere"}, {"process": os.getppid(), "started": None}]
)
def test_without_the_kernel_a_file_of_a_live_or_distant_process_holds(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EOPNOTSUPP))
    if "process" in alive:
        alive = {**alive, "started": locks._started(alive["process"])}
    told(tmp_path, "name", **alive)
    with pytest.raises(InputError, match=r"in use by process .* delete .*\.lock\.owner"):
        Lock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [OWNER]


def test_a_file_system_without_any_locks_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    with locked(tmp_path):
        assert "has no locks; start no second run" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "open", refusing(code))
    with pytest.raises(InputError, match=re.escape(os.strerror(code))):
        Lock(tmp_path)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("rows")
    (tmp_path / NAME).symlink_to("precious")
    with pytest.raises(InputError, match="symbolic links"):
        Lock(tmp_path)
    assert (tmp_path / "precious").read_text() == "rows"


# ---- runs ----------------------------------------------------------------------------------------


def method(problem):
    return build("fedavg", problem, learning_rate=0.1, batch_size=4)


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path):
    problem = digits_problem(hidden=(8,))
    algorithm = method(problem)
    with fh.Simulation(algorithm, problem, **OPTIONS, workdir=tmp_path) as run:
        run.step()
        held = (tmp_path / "metrics.jsonl").read_bytes()
        with pytest.raises(InputError, match="is in use by process"):
            fh.Simulation(algorithm, problem, **OPTIONS, workdir=tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == held
        run.step()
        record = run.record
    whole = fh.simulate(algorithm, problem, **OPTIONS)
    assert record.clients == whole.record.clients
    assert not (tmp_path / NAME).exists()


def test_a_run_that_fails_at_its_start_frees_its_directory(tmp_path):
    problem = digits_problem(hidden=(8,))

    def failing(*arguments):
        raise RuntimeError("out of luck")

    broken = method(problem)._replace(init=failing)
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        fh.Simulation(broken, problem, **OPTIONS, workdir=tmp_path)
    # The error still holds the frames of the run.
    assert caught.value.__traceback__ is not None
    Lock(tmp_path).release()
