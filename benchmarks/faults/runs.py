"""The tiny runs that are killed and spoilt, started by the launcher, and what must not change."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.disk import Disk, counting
from benchmarks.faults.processes import Child, Ended
from fedjax_het import cli
from fedjax_het.report import page
from fedjax_het.runtime import compilation_cache

ROUNDS = 12
# Values that depend on the machine's speed, and on what was compiled before.
UNSTABLE = ("wall_s", "compile_s", "compiled_programs")
LIMIT_S = 300.0

_TRAINING = {"learning_rate": 0.1, "batch_size": 4}
_SLOW = {"name": "speed_groups", "base_flops_per_s": 1e6, "uplink_bytes_per_s": 1e5}

# Sections that differ from `config`, by the name of a setting.
SETTINGS: dict[str, dict[str, Any]] = {
    "blocks of rounds": {
        "algorithm": {"name": "fedopt", "server_optimizer": "yogi", "server_learning_rate": 0.01}
    },
    "barrier": {
        "model": {"exits": True},
        "algorithm": {"name": "fedel"},
        "run": {"client_eval": "always"},
    },
    "deadline": {"algorithm": {"name": "fedprox", "deadline_s": 0.1}},
    "asynchronous": {"algorithm": {"name": "fedbuff", "clients_per_round": 6, "buffer_size": 2}},
    "PR-FL": {
        "algorithm": {
            "name": "prfl",
            "clients_per_round": None,
            "recovery": None,
            "density": {"interval": 3},
            "interval_s": 0.02,
            "links": {"slack_s": 0.0},
        }
    },
    "Oort": {"algorithm": {"name": "fedavg", "select": "oort"}},
    "memory of clients": {"algorithm": {"name": "scaffold"}},
    "residuals, failures, patience": {
        "fleet": {"failure_rate": 0.2, "energy": "phone_wifi"},
        "algorithm": {
            "name": "fedavg",
            "compose": [{"name": "compress.top_k", "share": 0.2, "error_feedback": True}],
        },
        "run": {"patience": 50},
    },
}


def config(setting: str, seed: int) -> dict[str, Any]:
    """The configuration of a setting: eight clients with a few digits and a small network."""
    base: dict[str, dict[str, Any]] = {
        "data": {
            "source": "digits",
            "num_clients": 8,
            "partition": {"name": "iid"},
            "per_client_cap": 12,
        },
        "model": {"name": "mlp", "hidden": [8]},
        "fleet": dict(_SLOW),
        "algorithm": {**_TRAINING, "clients_per_round": 4},
        "run": {"rounds": ROUNDS, "checkpoint_every": 3, "eval_every": 2, "seed": seed},
    }
    for name, part in SETTINGS[setting].items():
        base[name] |= part
    if base["algorithm"]["clients_per_round"] is None:
        del base["algorithm"]["clients_per_round"]
    return base


def launch(file: Path, workdir: Path) -> None:
    """`fedjax-het train`, in this process; pages have no figures, which take longer than the run.

    Args:
      file: configuration file.
      workdir: work directory.
    """
    page.inline_svg = lambda *figure: "<svg></svg>"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = ["fedjax-het train", f"--config={file}", f"--workdir={workdir}"]
    cli.train()


class Undisturbed(NamedTuple):
    """A run that nobody disturbed.

    Attributes:
      left: what it leaves, see `left`.
      used_s: processor time that it takes when its programs are compiled.
      operations: names of its operations on files, in their order.
    """

    left: dict[str, Any]
    used_s: float
    operations: list[str]


class Runs:
    """The runs of a campaign, below a directory of its own that is removed at the end.

    Args:
      name: name of the campaign, which has a store of compiled programs of its own.

    Attributes:
      root: the directory.
    """

    def __init__(self, name: str) -> None:
        os.environ[compilation_cache.ENVIRONMENT] += f"-{name}"
        self.root = Path(tempfile.mkdtemp(prefix="faults-"))
        self._known: dict[tuple[str, int], Undisturbed] = {}

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def workdir(self) -> Path:
        """A directory for the next run, which does not exist yet."""
        place = self.root / "run"
        shutil.rmtree(place, ignore_errors=True)
        _remove_links_of_killed()
        return place

    def file(self, setting: str, seed: int) -> Path:
        """The configuration file of a setting."""
        path = self.root / f"{''.join(c if c.isalnum() else '_' for c in setting)}_{seed}.py"
        if not path.exists():
            text = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return "
            path.write_text(f"{text}ConfigDict({config(setting, seed)!r})\n")
        return path

    def start(self, setting: str, seed: int, workdir: Path, before: Callable[[], None]) -> Child:
        """A process that starts or resumes the run, after `before()`."""
        file = self.file(setting, seed)

        def work() -> None:
            before()
            launch(file, workdir)

        return Child(work, self.root / "output.txt")

    def finish(self, setting: str, seed: int, workdir: Path) -> Ended:
        """Starts or resumes the run, undisturbed."""
        return self.start(setting, seed, workdir, lambda: None).wait(LIMIT_S)

    def undisturbed(self, setting: str, seed: int) -> Undisturbed:
        """A run that nobody disturbs; the first of two, which compiles, is not the one told of."""
        if (setting, seed) not in self._known:
            place, counted = self.root / "undisturbed", self.root / "operations.txt"
            for before in (lambda: None, lambda: Disk(place, counting(counted)).install()):
                shutil.rmtree(place, ignore_errors=True)
                ended = self.start(setting, seed, place, before).wait(LIMIT_S)
                if ended.code != 0:
                    raise RuntimeError(f"the undisturbed run fails: {ended.output[-2000:]}")
            operations = counted.read_text().splitlines()
            self._known[setting, seed] = Undisturbed(left(place), ended.used_s, operations)
        return self._known[setting, seed]


def left(workdir: Path) -> dict[str, Any]:
    """What a finished run leaves and a fault may not change, by name."""
    summary = json.loads((workdir / "summary.json").read_text())
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    evaluated = workdir / "clients_eval.jsonl"
    return {
        "summary": _stable(summary),
        "metrics": [_stable(row) for row in rows],
        "clients": (workdir / "clients.jsonl").read_bytes(),
        "population": (workdir / "population.npz").read_bytes(),
        "evaluations": evaluated.read_bytes() if evaluated.exists() else b"",
        "parameters": (workdir / "model.safetensors").read_bytes(),
    }


def _stable(row: dict[str, Any]) -> dict[str, Any]:
    targets = [
        {name: value for name, value in each.items() if name not in UNSTABLE}
        for each in row.get("targets", [])
    ]
    kept = {name: value for name, value in row.items() if name not in UNSTABLE}
    return {**kept, "targets": targets} if "targets" in row else kept


def differing(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Names of what differs, separated by commas; "" if nothing does."""
    return ", ".join(name for name in expected if found[name] != expected[name])


def refusal(ended: Ended) -> str | None:
    """The line with which a program refused; None if it ended in any other way."""
    lines = [line for line in ended.output.splitlines() if line.strip()]
    if ended.code != 2 or not lines or not lines[-1].startswith("error: "):
        return None
    return lines[-1] if "Traceback" not in ended.output else None


def complaint(ended: Ended) -> str:
    """How a program failed, without what differs from run to run."""
    if ended.code is None:
        return "hangs"
    lines = [line for line in ended.output.splitlines() if line.strip()]
    last = lines[-1].partition(":")[0][:80] if lines else ""
    places = re.findall(r'fedjax_het/([a-z_/]+\.py)", line \d+, in (\w+)', ended.output)
    place = " in {}: {}".format(*places[-1]) if places else ""
    return f"exit status {ended.code}: {last}{place}"


def _remove_links_of_killed() -> None:
    """A killed process leaves its directory of links in the store of compiled programs."""
    root = compilation_cache.store()
    for place in [] if root is None or not root.is_dir() else root.glob("process-*"):
        shutil.rmtree(place, ignore_errors=True)
