"""Damaged files for every reader: a value, or one line that says what to do.

    python -m benchmarks.faults.files --minutes=5 [--seed=0]
    python -m benchmarks.faults.files --cases=1000

A case is one reader and one of the files that it reads, damaged: bits flipped, cut, emptied,
deleted, lengthened, of another format, nested deeply, with other values at some place of its JSON,
with arrays of other types or that claim or unpack to sizes beyond reason; or in its place a
directory, a pipe that nobody writes to, or a circle of links. The reader must return or refuse with
an `InputError` of one line before 20 s are over, and within 512 MiB of memory.
"""

import functools
import io
import json
import os
import resource
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import judging, processes, sound
from benchmarks.faults.campaign import Campaign, Case, Verdict, failure, generator, kind_of, main
from benchmarks.faults.processes import Child, Ended, Worker
from benchmarks.faults.writes import DAMAGES, spoil
from fedjax_het.common.errors import InputError
from fedjax_het.report import page

_LIMIT_S = 20.0
_MEMORY_BYTES = 512 * 1024**2
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**31, 2**63, 10**400, -1e308, 1e-320, float("nan"), float("inf")),
    *("", "x", "\ud800", "../x", [], [None], {}, {"a": 1}, [[]], [1, [2]]),
)


def _other_value(path: Path, rng: np.random.Generator) -> None:
    """Changes one value of a JSON file or of one line of a file of rows."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    row = int(rng.integers(len(lines)))
    value = json.loads(lines[row])
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(item, dict | list):
                visit(item)

    if isinstance(value, dict | list):
        visit(value)
    chosen = _VALUES[int(rng.integers(len(_VALUES)))]
    if places:
        node, key = places[int(rng.integers(len(places)))]
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = chosen
    lines[row] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")


def _other_array(path: Path, rng: np.random.Generator) -> None:
    """Changes one array of an npz."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = sorted(arrays)[int(rng.integers(len(arrays)))]
    old = arrays[name]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: old.astype(np.str_),
        lambda: old[:-1],
        lambda: old[:0],
        lambda: old[..., None],
        lambda: np.zeros((), np.int64),
        lambda: np.full(old.shape, np.nan),
        lambda: np.full(old.shape, -(2**63), np.int64),
        lambda: np.full(old.shape, 2**63, np.uint64),
        lambda: np.full(old.shape, 1j),
        lambda: np.array([{}] * max(old.size, 1), object),
        lambda: np.zeros(old.shape, "datetime64[s]"),
        lambda: np.zeros(old.shape, [("a", np.int32)]),
    )
    arrays[name] = changes[int(rng.integers(len(changes)))]()
    np.savez(path, **arrays)


def _member(path: Path, rng: np.random.Generator, count: int, content: int) -> None:
    """Makes one member of an npz claim `count` bytes, of which there are `content` zeros."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[int(rng.integers(len(members)))]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (count,)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other in members:
            if other != name:
                archive.writestr(other, members[other])
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(content // 2**20):
                file.write(bytes(2**20))


def _replaced(content: bytes) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: _no_result(path.write_bytes(content))


def _no_result(value: object) -> None:
    del value


def _in_place(make: Callable[[Path], Any]) -> Callable[[Path, np.random.Generator], None]:
    def replace(path: Path, rng: np.random.Generator) -> None:
        del rng
        path.unlink()
        make(path)

    return replace


def _array_file(path: Path, rng: np.random.Generator) -> None:
    with path.open("wb") as file:
        np.save(file, rng.integers(0, 9, 9))


Spoil = Callable[[Path, np.random.Generator], None]

# Damages by name.
ANY: dict[str, Spoil] = {
    **{
        how: functools.partial(lambda path, rng, how: spoil(path, how, rng), how=how)
        for how in DAMAGES
    },
    "another format: png": _replaced(b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "another format: gzip": _replaced(b"\x1f\x8b\x08" + bytes(20)),
    "another format: zip": _replaced(b"PK\x05\x06" + bytes(18)),
    "another format: npy": _array_file,
    "another format: text": _replaced("ähm\n\x00".encode("latin-1")),
    "another format: list": _replaced(b"[1, 2]\n"),
    "another format: number": _replaced(b"1\n"),
    "another format: mapping": _replaced(b"{}\n"),
    "nested deeply": _replaced(b"[" * 200_000 + b"]" * 200_000 + b"\n"),
    "a long number": _replaced(b"1" * 10_000 + b"\n"),
    "a directory": _in_place(Path.mkdir),
    "a pipe": _in_place(os.mkfifo),
    "a circle of links": _in_place(lambda path: path.symlink_to(path.name)),
    "endless": _in_place(lambda path: path.symlink_to("/dev/zero")),
}
JSON: dict[str, Spoil] = {"another value": _other_value}
NPZ: dict[str, Spoil] = {
    "another array": _other_array,
    "claims": functools.partial(_member, count=10**15, content=0),
    "unpacks": functools.partial(_member, count=2**30, content=2**30),
}


def generate(seed: int, number: int) -> Case:
    """A reader, in turn, and a damage."""
    rng = generator(seed, number)
    names = list(sound.READERS)
    return {"reader": names[number % len(names)], "damage": int(rng.integers(2**31))}


def damaged(place: Path, case: Case) -> tuple[str, str]:
    """Damages one file below a directory; returns its name and the damage."""
    rng = np.random.default_rng(case["damage"])
    files = sorted(path for path in place.rglob("*") if path.is_file())
    kinds = sorted({path.name for path in files})
    name = kinds[int(rng.integers(len(kinds)))]
    name = case.get("file", name)
    path = next(path for path in files if path.name == name)
    special: dict[str, Spoil] = {".json": JSON, ".jsonl": JSON, ".npz": NPZ}.get(path.suffix, {})
    known = {**ANY, **special}
    # Half of the damages are those that only this kind of file can have.
    group = special if special and rng.random() < 0.5 else known
    how = sorted(group)[int(rng.integers(len(group)))]
    how = case.get("how", how)
    known[how](path, rng)
    return name, how


def answer(root: Path, case: Case) -> Verdict:
    """The verdict on a reader, in a process of its own."""
    page.inline_svg = lambda *figure: "<svg></svg>"
    _, read = sound.READERS[case["reader"]]
    place = _copied(root, "case", case)
    told = ": ".join(damaged(place, case))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(place)
        verdict = Verdict("read", detail=told)
    except InputError as error:
        verdict = judging.refused(str(error))
    except Exception as error:
        return failure(f"{case['reader']}: {kind_of(error)}", f"{told}: {error!r}")
    finally:
        judging.release()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > _MEMORY_BYTES:
        return failure(f"{case['reader']}: takes memory", f"{told}: {grown} bytes")
    return verdict


def run(root: Path, worker: Worker, case: Case) -> Verdict:
    """The worker's verdict, or that it hung or died."""
    told = worker.ask(case)
    if not isinstance(told, Ended):
        return told
    what = "hangs" if told.code is None else f"the process ends with {told.code}"
    # The same damage once more, for its name.
    place = _copied(root, "again", case)
    return failure(f"{case['reader']}: {what}", ": ".join(damaged(place, case)))


def smaller(root: Path, case: Case) -> Iterator[Case]:
    """The same file and damage by their names, which new damages do not change."""
    if "how" not in case:
        name, how = damaged(_copied(root, "again", case), case)
        yield {**case, "file": name, "how": how, "damage": 0}
        yield {**case, "file": name, "how": how}


def _copied(root: Path, name: str, case: Case) -> Path:
    """A copy of the sound files of a reader."""
    place = root / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / "sound" / sound.READERS[case["reader"]][0], place)
    return place


if __name__ == "__main__":
    processes.freeze()
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        top = Path(directory)
        made = Child(lambda: sound.make(top / "sound"), top / "output.txt").wait(300.0)
        if made.code != 0:
            raise RuntimeError(f"the sound files cannot be made: {made.output[-2000:]}")
        with Worker(functools.partial(answer, top), top / "output.txt", _LIMIT_S) as one:
            main(
                Campaign(
                    "files",
                    __doc__,
                    generate,
                    functools.partial(run, top, one),
                    functools.partial(smaller, top),
                )
            )
