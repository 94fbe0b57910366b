"""All contenders on the same work, in turn by batches of rounds; prints ratios.

    python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    python -m benchmarks.peers.compare --python .venv-peers/bin/python --json peers.json

The first batch of rounds includes compilation, whose time is printed; the ratios are of the later
batches. Final accuracies must agree and, if the work has no randomness of its own, the weights too.
A contender that fails is reported with the reason, and the others continue.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, isa
from benchmarks.peers.process import CONTENDERS, Contender, Process
from benchmarks.peers.work import Work
from benchmarks.peers.works import SETTINGS, Setting, record
from fedjax_het.fleet.cost import CostTable

# Largest difference of two accuracies that counts as the same: twice the standard error of the
# difference of two models on 1,000 test samples, at worst.
_SAME_ACCURACY = 0.045
# Largest distance of two models, over the distance that training moved them. Other samples or seeds
# give 1 and more; rounding on its own 0.07 between two of the PyTorch contenders in (b).
_SAME_WEIGHTS = 0.15


def step_gflop(setting: Setting, work: Work, ends: Sequence[int]) -> list[float]:
    """GFLOP of each measured block that the work asks for: only what is to be trained."""
    cost: CostTable = setting.problem.cost
    per_sample = cost.step_flops(work.first, np.full_like(work.first, len(cost.names) - 1))
    widths = setting.algorithm().widths
    if widths is not None:
        per_sample = per_sample * np.asarray(widths.shares)[work.level]
    rounds = np.sum(per_sample * work.steps * work.batch, axis=1) / 1e9
    return [float(np.sum(rounds[a:b])) for a, b in itertools.pairwise(ends)]


def run_work(
    key: str,
    folder: Path,
    contenders: Sequence[Contender],
    python: str,
    blocks: int,
    block_rounds: int | None = None,
) -> dict[str, Any]:
    """One work by everyone.

    Args:
      key: of `SETTINGS`.
      folder: an empty place.
      contenders: who; ours first.
      python: interpreter of the peers.
      blocks: measured blocks.
      block_rounds: rounds of a block; None takes the setting's.
    """
    setting = SETTINGS[key]()
    if block_rounds is not None:
        setting = setting._replace(block_rounds=block_rounds)
    work = record(setting, folder, blocks)
    mixed = bool(np.any(work.first != work.first[0, 0]))
    cut = bool(np.any(work.level))
    taking_part = [
        c
        for c in contenders
        if (mixed or "--frozen" not in c.flags)
        and (cut or c.module != "torch_widths")
        and (c.symbols or work.x.dtype == np.float32)
    ]
    processes = [Process(c, work, key, python) for c in taking_part]
    product, product_flops = harness.gemm()
    rates: list[float] = []
    for _ in work.blocks:
        rates.append(product_flops / harness.interleave({"": product}, 3)[""].samples_s[-1] / 1e9)
        for process in processes:
            process.block()
    for process in processes:
        process.close()
    gflop = step_gflop(setting, work, work.blocks)
    return {
        "key": key,
        "title": setting.title,
        "mixed": mixed,
        "exact": setting.exact,
        "rounds": work.rounds,
        "block_gflop": gflop,
        "matrix_product_gflop_per_s": harness.spread(rates[1:])._asdict(),
        "contenders": [
            _row(
                p,
                processes[0],
                gflop,
                rates[1:],
                work.leaves,
                exact=setting.exact,
                same_method=p.contender.cuts if cut else p.contender.partial or not mixed,
            )
            for p in processes
        ],
    }


def _row(
    process: Process,
    ours: Process,
    gflop: Sequence[float],
    rates: Sequence[float],
    start: Sequence[np.ndarray],
    *,
    exact: bool,
    same_method: bool,
) -> dict[str, Any]:
    """Reported values of a contender."""
    row: dict[str, Any] = {"name": process.contender.name, "setup_s": process.setup_s}
    if process.failure is not None or ours.failure is not None:
        return {**row, "failure": process.failure or "ours failed"}
    seconds, reference = process.seconds(), ours.seconds()
    pairs = list(zip(seconds, reference, strict=True))[1:]
    done = [g / s for g, s in zip(gflop, seconds[1:], strict=True)]
    row |= {
        "first_block_s": process.blocks[0]["train_s"],
        "block_s": harness.spread(seconds[1:])._asdict(),
        "eval_s": harness.spread([block["eval_s"] for block in process.blocks[1:]])._asdict(),
        "time_over_ours": harness.spread([a / b for a, b in pairs])._asdict(),
        "gflop_per_s": harness.spread(done)._asdict(),
        "share_of_matrix_product": harness.spread(
            [g / r for g, r in zip(done, rates, strict=True)]
        )._asdict(),
        "accuracy": [block["accuracy"] for block in process.blocks],
        "compile_s": process.blocks[-1].get("compile_s"),
        "with_compiling_s": sum(block["train_s"] for block in process.blocks),
        "same_method": same_method,
    }
    if same_method:
        difference = abs(row["accuracy"][-1] - ours.blocks[-1]["accuracy"])
        row["same_accuracy"] = bool(difference <= _SAME_ACCURACY)
        if exact and process.weights is not None and ours.weights is not None:
            apart = distance(process.weights, ours.weights) / distance(ours.weights, start)
            row["weights_apart"] = apart
            row["same_weights"] = apart <= _SAME_WEIGHTS
    return row


def distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Euclidean distance of two models."""
    squares = [np.sum(np.square(p - q, dtype=np.float64)) for p, q in zip(a, b, strict=True)]
    return float(np.sqrt(np.sum(squares)))


def report(results: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = [harness.describe(results["machine"]), ""]

    def show(value: dict[str, float], scale: float = 1.0) -> str:
        return str(harness.Spread(*(scale * v for v in value.values())))

    for work in results["works"]:
        product = show(work["matrix_product_gflop_per_s"])
        lines += [
            f"({work['key']}) {work['title']}: {work['rounds']} rounds; matrix product {product}"
            " GFLOP/s",
            "",
            "| | time, ours = 1 | s a block | GFLOP/s | % of matrix product | set-up s | "
            "first block s | compiling s | accuracy | same |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in work["contenders"]:
            if "failure" in row:
                lines.append(f"| {row['name']} | failed: {row['failure']} | | | | | | | | |")
                continue
            same = "other method"
            if row["same_method"]:
                same = "yes" if row["same_accuracy"] else "NO"
            if "same_weights" in row:
                same = "yes" if row["same_weights"] and row["same_accuracy"] else "NO"
                same += f", {row['weights_apart']:.0e} apart"
            cells = [
                row["name"],
                show(row["time_over_ours"]),
                show(row["block_s"]),
                show(row["gflop_per_s"]),
                show(row["share_of_matrix_product"], 100.0),
                f"{row['setup_s']:.1f}",
                f"{row['first_block_s']:.1f}",
                "" if row["compile_s"] is None else f"{row['compile_s']:.1f}",
                f"{row['accuracy'][-1]:.3f}",
                same,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", default="a,b,c,d,e,f,g,h", help="keys, comma-separated")
    parser.add_argument("--only", nargs="+", help="names of contenders; ours always takes part")
    parser.add_argument("--blocks", type=int, default=3, help="measured blocks of rounds")
    parser.add_argument("--rounds", type=int, help="of a block; default that of the work")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--markdown", help="also write the tables here")
    parser.add_argument("--keep", help="folder for the works and the logs")
    arguments = isa.parse(parser)
    wanted = {"ours", *(arguments.only or [c.name for c in CONTENDERS])}
    chosen = [c for c in CONTENDERS if c.name in wanted]
    results: dict[str, Any] = {"machine": harness.machine(), "works": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        for key in arguments.works.split(","):
            # Absolute, and with its links left alone: a virtual environment is found by its path.
            python = os.path.abspath(arguments.python)
            done = run_work(key, folder / key, chosen, python, arguments.blocks, arguments.rounds)
            results["works"].append(done)
            print(report({**results, "works": [done]}), flush=True)
    harness.write(arguments.json, results)
    if arguments.markdown:
        Path(arguments.markdown).write_text(report(results) + "\n")


if __name__ == "__main__":
    main()
