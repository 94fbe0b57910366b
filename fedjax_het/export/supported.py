"""Which methods run unchanged on devices that wait for the server, and why others do not."""

import hashlib
import json

import jax

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.selection import Selector
from fedjax_het.models.saving import named
from fedjax_het.problem import Problem


def obstacle(algorithm: Algorithm, problem: Problem) -> tuple[str, str] | None:
    """Why a method, or the fleet of its problem, cannot be exported, and a remedy; None if it can.

    It asks what the method does, not for its name: whether all clients of a round are merged
    together, whether they send updates, and whether the server needs no sample of theirs.
    """
    pace, select, fleet = algorithm.pace, algorithm.select, problem.fleet
    synchronous = "use a method of rounds (fedavg, fedpmt, heterofl, fedel)"
    if pace.may_wait or pace.refills:
        return f"its pace {pace.name} merges while other clients are at work", synchronous
    if algorithm.merge.buffers is not None:
        return (
            "its merge keeps values of single clients between the rounds",
            "use a method whose merge is a sum over the clients of a round (fedavg, fedpmt)",
        )
    if algorithm.sends != "updates":
        return (
            f"its clients send {algorithm.sends}, for which a device has no part here",
            "use a method whose clients send updates (fedavg, fedpmt)",
        )
    if algorithm.uploads:
        names = ", ".join(upload.name for upload in algorithm.uploads)
        return (
            f"{names} would change the updates only after they have been sent",
            "leave it out, and use what the transport offers",
        )
    if algorithm.calibrate is not None:
        return (
            "its model is completed with statistics of all training samples, which stay on the "
            "devices",
            "use a model with group norm, or static_norm=False",
        )
    if isinstance(select, Selector) and (select.probes or algorithm.measure is not None):
        return (
            "its selection asks clients before the cohort is chosen",
            "use select.uniform() or select.by_samples()",
        )
    if not fleet.always_on or fleet.interrupts:
        return (
            "its fleet describes when devices are off or fail, which real devices decide "
            "themselves",
            "describe speeds and links only",
        )
    return None


def require_exportable(algorithm: Algorithm, problem: Problem) -> None:
    """Raises `InputError` if a method cannot be exported; see `obstacle`."""
    found = obstacle(algorithm, problem)
    if found is not None:
        reason, remedy = found
        raise InputError(f"{algorithm.name} on real devices: {reason}; {remedy}")


def fingerprint(algorithm: Algorithm, problem: Problem) -> str:
    """A digest of what both sides must have in common: the method, its options and the model."""
    shapes = {name: list(leaf.shape) for name, leaf in named(problem.model.shapes).items()}
    told = {
        "algorithm": algorithm.name,
        "options": jsonable(algorithm.options),
        "model": [problem.model.name, problem.model.compute_dtype, shapes],
        "pipeline": problem.data.pipeline,
        "objective": problem.objective.name,
        "jax": jax.random.key_impl(jax.random.key(0)),
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
