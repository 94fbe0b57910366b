"""Client by client without compiling: names what fails, and is the oracle of the programs."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Plan, Variables
from fedjax_het.engine.packing import collect, deal
from fedjax_het.engine.programs import Outputs, Round, merge_chunk, train_one


class ClientError(RuntimeError):
    """A client's work failed in `debug` execution; the message names the client and the stage."""


def one_by_one(
    algorithm: Algorithm,
    plan: Plan,
    start: Variables,
    data: PyTree,
    common: Round,
    acc: PyTree,
    version: np.ndarray | None,
    staleness: np.ndarray | None,
    *,
    last: int,
    checked: bool,
) -> tuple[PyTree, Outputs]:
    """Trains every client of the plan and adds it to `acc`; see `Engine.run`.

    Args:
      algorithm: the method.
      plan: what to train, each on the route planned.
      start: the model, or several, stacked.
      data: what the local update reads.
      common: what the clients of a round share, or that of several rounds, stacked alike.
      acc: the merge's accumulator.
      version: int32[k], which of the stacked models a client starts from; None for one model.
      staleness: int32[k], server steps since that model was made; None for none.
      last: the network's deepest block.
      checked: see `merge_chunk`.

    Raises:
      ClientError: a client fails.
    """
    dealt, outputs = [], []
    for i, client in enumerate(plan.clients):
        own, rows = deal(plan, [i], 1, last, version=version, staleness=staleness)
        one = jax.tree.map(lambda a: jnp.asarray(a[0]), rows)
        stage = "local training"
        try:
            with jax.disable_jit():
                route = plan.routes[i]
                result, mask = train_one(algorithm, route, start, data, one, one.steps, common)
                stage = "merge"
                row, result, mask = jax.tree.map(lambda a: a[None], (one, result, mask))
                acc, out = merge_chunk(
                    algorithm, acc, start, row, result, mask, common, checked=checked
                )
        except InputError:
            raise
        except Exception as error:
            message = f"client {int(client)} failed in its {stage}: {error}"
            raise ClientError(message) from error
        dealt.append(own)
        outputs.append(out)
    return acc, collect(dealt, jax.device_get(outputs))
