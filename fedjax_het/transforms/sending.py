"""Uploads of a method inside its merge, and the transformations that add one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract import selection
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Variables
from fedjax_het.contract.checks import check_memory
from fedjax_het.contract.memory import Buffers
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.staleness import scaled
from fedjax_het.contract.uploads import Draw, Upload
from fedjax_het.problem import Problem
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.nesting import Nested, nested


class Own(NamedTuple):
    """State of the uploads of a method.

    Attributes:
      key: typed PRNG key.
      step: number of server steps so far, int32.
      kept: values that each upload keeps; () for one that keeps none, None while they are merged.
    """

    key: jax.Array
    step: jax.Array
    kept: Any


class Passing(NamedTuple):
    """Accumulator of a merge with uploads: that of the merge, and what each upload keeps."""

    sums: PyTree
    kept: tuple[PyTree, ...]


def uploading(upload: Upload, option: str, **options: Any) -> Transformation:
    """The transformation that adds an upload after those of the method.

    Args:
      upload: upload to add.
      option: kind of the transformation in `Algorithm.options`, e.g. "compress"; a method has one
        of each kind.
      **options: resolved options in JSON types, which become part of `Algorithm.options`.
    """

    def transformation(algorithm: Algorithm) -> Algorithm:
        require(
            algorithm.sends == "updates",
            f"{upload.name} of {algorithm.name}",
            f"changes updates, but a client of {algorithm.name} sends {algorithm.sends}",
            "leave it out, or use a method whose clients send updates (fedavg, fedpmt)",
        )
        known = algorithm.options or {}
        require(
            option not in known,
            f"{upload.name} of {algorithm.name} with {option} = {known.get(option)}",
            f"a method has one {option}",
            "leave one of them out",
        )
        for earlier in algorithm.uploads:
            _require_order(earlier, upload)
        _require_mean(upload, algorithm)
        require(
            upload.keep is None or algorithm.merge.buffers is None,
            f"{upload.name} of {algorithm.name}",
            "keeps values between the rounds, and so does the merge of this method",
            "leave it out",
        )
        said = {**known, option: {"name": upload.name, **options}}
        return algorithm._replace(uploads=(*algorithm.uploads, upload), options=said)

    return transformation


def _require_order(earlier: Upload, later: Upload) -> None:
    """Raises `InputError` if an upload may not follow another one."""
    require(
        not earlier.hides,
        f"{later.name} after {earlier.name}",
        f"changes single updates, of which {earlier.name} shows the server only the sum",
        f"put {earlier.name} last",
    )
    require(
        later.contracts or not earlier.bounds,
        f"{later.name} after {earlier.name}",
        f"may make an update longer than {earlier.name} allows",
        f"put {later.name} before {earlier.name}",
    )
    require(
        not (later.fills and earlier.price is not None),
        f"{later.name} after {earlier.name}",
        f"gives a value to every coordinate, so that {earlier.name} would save no bytes",
        "leave one of them out",
    )


def _require_mean(upload: Upload, algorithm: Algorithm) -> None:
    """Raises `InputError` if an upload needs a mean of the updates and the merge is none."""
    mean, what = algorithm.merge.mean, f"{upload.name} of {algorithm.name}"
    remedy = "use a method that merges by the mean (fedavg, fedpmt), and no robust rule"
    require(
        upload.noise is None or mean,
        what,
        "adds its noise to a mean of the updates, and this method merges by a rule of its own",
        remedy,
    )
    require(
        not upload.hides or mean,
        what,
        "shows the server only sums of the updates, and this method merges by a rule of its own",
        remedy,
    )


def attached(algorithm: Algorithm, problem: Problem) -> Algorithm:
    """The method with its uploads in its plan and merge; the engine runs this one.

    Args:
      algorithm: method; without uploads, without a discount of late updates, and with a merge that
        only sums, it is returned as it is.
      problem: problem of the run.

    Raises:
      InputError: if an upload cannot serve this method on this problem, if clients have a memory
        that the pace does not permit, or if the merge needs too much memory (`Aggregator.sized`).
    """
    check_memory(algorithm)
    num_clients, merge = problem.num_clients, algorithm.merge
    if merge.sized is not None:
        merge = merge.sized(algorithm.most_merged, problem.model.shapes)
        algorithm = algorithm._replace(merge=merge)
    uploads = algorithm.uploads
    if not uploads and algorithm.pace.discount is None:
        return algorithm
    for upload in uploads:
        _require_mean(upload, algorithm)
        if upload.check is not None:
            upload.check(algorithm, problem)
    outer = nested(algorithm)

    def init(variables: Variables, key: jax.Array) -> Nested:
        own, inner = jax.random.split(key)
        kept = tuple(() if u.keep is None else u.keep(variables, num_clients) for u in uploads)
        return Nested(algorithm.init(variables, inner), Own(own, jnp.zeros((), jnp.int32), kept))

    def update(state: Nested, variables: Variables, merged: Merged) -> tuple[Nested, Variables]:
        state, variables = outer.update(state, variables, merged)
        return state._replace(own=state.own._replace(step=state.own.step + 1)), variables

    attached = outer._replace(
        init=init,
        merge=_merge(algorithm, outer.merge),
        update=update,
        pace=algorithm.pace._replace(discount=None),
        uploads=(),
    )
    return attached._replace(plan=_plan(algorithm, draw_of(algorithm, problem)))


def draw_of(algorithm: Algorithm, problem: Problem) -> Draw:
    """The draw of the cohorts of a method on this problem."""
    whole = not algorithm.pace.may_wait and problem.fleet.always_on
    chance = algorithm.select is selection.uniform
    learns = (
        not chance
        or algorithm.pace.may_wait
        or algorithm.observe is not None
        or not isinstance(algorithm.plan, Schedule)
    )
    return Draw(algorithm.cohort_size, problem.num_clients, whole and chance, learns)


def _plan(algorithm: Algorithm, draw: Draw) -> Any:
    """The method's plan with the prices of its uploads, and the numbers that they tell."""

    def amend(situation: Situation, plan: Plan) -> Plan:
        info = dict(plan.info or {})
        for upload in algorithm.uploads:
            if upload.price is not None:
                plan = plan._replace(timing=upload.price(plan.timing, draw.size))
            if upload.told is not None:
                info |= upload.told(situation.round, draw)
        return plan._replace(info=info or None)

    inner = algorithm.plan
    if isinstance(inner, Schedule):
        return inner.amended(amend)

    def plan(state: Nested, variables: Variables, situation: Situation) -> tuple[Plan, Nested]:
        tasks, own = algorithm.plan(state.inner, variables, situation)
        return amend(situation, tasks), state._replace(inner=own)

    return plan


def _merge(algorithm: Algorithm, inner: Aggregator) -> Aggregator:
    """The merge of a method behind its uploads; `inner` is that of the nested method."""
    uploads, late = algorithm.uploads, algorithm.pace.discount

    def init(state: Nested, variables: Variables, mask_shapes: PyTree) -> Passing:
        sums, own = inner.init(state, variables, mask_shapes), state.own
        kept = []
        for i, (upload, before) in enumerate(zip(uploads, own.kept, strict=True)):
            key = jax.random.fold_in(jax.random.fold_in(own.key, own.step), i)
            renewing, noising = jax.random.split(key)
            kept.append(before if upload.renew is None else upload.renew(before, renewing))
            if upload.noise is not None:
                noise = upload.noise(kept[i], variables.params, noising)
                sums = sums._replace(num=jax.tree.map(jnp.add, sums.num, noise))
        return Passing(sums, tuple(kept))

    def add(acc: Passing, chunk: Chunk) -> Passing:
        kept, keys = [], chunk.key
        for i, (upload, before) in enumerate(zip(uploads, acc.kept, strict=True)):
            own = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
            after, chunk = upload.change(before, chunk._replace(key=own))
            kept.append(after)
        if late is not None:
            chunk = scaled(chunk, late)
        return Passing(inner.add(acc.sums, chunk), tuple(kept))

    def finalize(acc: Passing, variables: Variables, shared: PyTree) -> Merged:
        return inner.finalize(acc.sums, variables, shared)

    buffers = inner.buffers
    if buffers is not None:
        take = buffers.take
        buffers = buffers._replace(take=lambda acc: take(acc.sums))
    if any(upload.keep is not None for upload in uploads):
        buffers = Buffers(
            lambda acc: acc.kept,
            lambda state, kept: state._replace(own=state.own._replace(kept=kept)),
        )
    return Aggregator(init, add, finalize, buffers)
