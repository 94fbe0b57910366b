"""Rows of the records for what a selection asked of clients before it chose."""

from typing import Any

import numpy as np

from fedjax_het.engine.efforts import promised
from fedjax_het.engine.selecting import Probes
from fedjax_het.problem import Problem
from fedjax_het.simulation.device_columns import joules, speeds


def probe_rows(step: int, probes: Probes | None, problem: Problem) -> list[dict[str, Any]]:
    """One row per client that was asked, of status "probed", in the columns of tasks.

    Its loss is that of the current model. A client is free once it has answered, so that it spends
    no energy on waiting.

    Args:
      step: number of the server step, from 1.
      probes: what was asked; None gives no rows.
      problem: problem, for the devices.
    """
    if probes is None:
        return []
    flight, timing = probes.flight, probes.flight.timing
    k, last = len(flight.client), problem.model.num_blocks - 1
    columns = {
        "client": flight.client,
        "version": flight.version,
        "staleness": step - 1 - flight.version,
        "dispatched_s": flight.dispatched_s,
        "arrived_s": flight.arrives_s,
        "download_s": timing.download_s,
        "compute_s": timing.compute_s,
        "upload_s": timing.upload_s,
        "bytes_down": timing.bytes_down,
        "bytes_up": timing.bytes_up,
        "flops": timing.flops,
        **joules(problem, flight, promised(flight)),
        "device_flops_per_s": speeds(problem, flight),
        "first_block": np.full(k, last),
        "exit_block": np.full(k, last),
        "cut_block": np.full(k, None),
        "samples": np.zeros(k, np.int64),
        "steps": flight.steps,
        "loss": probes.loss,
        "status": np.full(k, "probed"),
    }
    lists = [column.tolist() for column in columns.values()]
    names = ("step", *columns)
    return [dict(zip(names, (step, *values), strict=True)) for values in zip(*lists, strict=True)]
