"""Debug execution, client by client without compiling; its errors name the client and the stage.

Tests compare the compiled programs with it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.packing import collect, pack
from fedjax_het.engine.rows import Outputs, Round
from fedjax_het.engine.work import Work


class ClientError(RuntimeError):
    """A client's work failed in `debug` execution; the message names the client and the stage."""


def one_by_one(
    work: Work,
    plan: Plan,
    start: Variables,
    data: PyTree,
    common: Round,
    acc: PyTree,
    columns: Mapping[str, Any],
    *,
    last: int,
) -> tuple[PyTree, Outputs]:
    """Processes every client of a plan and adds it to `acc`; see `Engine.run`.

    Args:
      work: functions that process a client.
      plan: tasks, each run on its planned route.
      start: model from which the clients start, or several stacked models.
      data: data that the work reads.
      common: values that the clients of a round share, or those of several rounds, stacked.
      acc: accumulator.
      columns: arguments `version`, `staleness`, `slot` and `place` of `packing.pack`.
      last: index of the model's deepest block.

    Returns:
      The accumulator, and `Outputs` as NumPy arrays in the plan's order.

    Raises:
      ClientError: if a client fails.
    """
    packed, outputs = [], []
    for i, client in enumerate(plan.clients):
        places, rows = pack(plan, [i], 1, last, **columns)
        one = jax.tree.map(lambda a: jnp.asarray(a[0]), rows)
        stage = "local training"
        try:
            with jax.disable_jit():
                route = plan.routes[i]
                kept = work.recall(acc, data, one.client)
                result, mask = work.produce(route, start, data, one, one.steps, common, kept)
                stage = "merge"
                row, result, mask = jax.tree.map(lambda a: a[None], (one, result, mask))
                acc, out = work.consume(acc, route, start, row, result, mask, common)
        except InputError:
            raise
        except Exception as error:
            message = f"client {int(client)} failed in its {stage}: {error}"
            raise ClientError(message) from error
        packed.append(places)
        outputs.append(out)
    return acc, collect(packed, jax.device_get(outputs))
