"""`fedjax-het watch`: a page on this machine that follows a job."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedjax_het.cli.running import Command
from fedjax_het.common.errors import require


def _flags(flag_values: flags.FlagValues) -> None:
    told = "Port of the page; 0 for one that is free."
    flags.DEFINE_integer(
        "port", 8008, told, lower_bound=0, upper_bound=65535, flag_values=flag_values
    )
    told = "Address of the loopback."
    flags.DEFINE_string("host", "127.0.0.1", told, flag_values=flag_values)


def _watch(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    root = Path(arguments[0])
    require(
        root.is_dir(),
        f"workdir = {str(root)!r}",
        "is not a directory",
        "name the one that train, compare or sweep writes to",
    )
    from fedjax_het.report import live, progress, serving
    from fedjax_het.simulation.lock import holder

    serving.require_loopback(values.host)
    os.nice(10)  # the job comes first
    page = live.LivePage(progress.Watched(root), holder)
    server = serving.Server(values.host, values.port, page)
    print(f"{root}: {server.url} (Ctrl-C ends it)", flush=True)
    server.run()


watch = Command(
    "watch",
    "Shows a job that goes on, as a page on this machine.",
    ["fedjax-het watch runs/demo", "fedjax-het watch runs/demo --port=0"],
    _flags,
    _watch,
    ["WORKDIR"],
)
