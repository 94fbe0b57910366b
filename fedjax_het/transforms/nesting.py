"""Base of a transformation with its own state, which contains the state of the method."""

from typing import Any, NamedTuple

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Merged, Report, Variables
from fedjax_het.contract.plan import Plan, Schedule, Situation


class Nested(NamedTuple):
    """State of a transformed method.

    Attributes:
      inner: state of the transformed method.
      own: state of the transformation.
    """

    inner: PyTree
    own: PyTree


def nested(algorithm: Algorithm) -> Algorithm:
    """The method with its state in `Nested.inner`; the caller must replace `init`.

    The plan, the merge, the server's step, buffers, observations, evaluated models, sub-models and
    the preview are those of the transformed method. With a new plan that depends on the state,
    rounds do not run in batches.

    Args:
      algorithm: method to transform.
    """

    def plan(state: Nested, variables: Variables, situation: Situation) -> tuple[Plan, Nested]:
        tasks, inner = algorithm.plan(state.inner, variables, situation)
        return tasks, state._replace(inner=inner)

    def begin(state: Nested, variables: Variables, mask_shapes: PyTree) -> PyTree:
        return algorithm.merge.init(state.inner, variables, mask_shapes)

    def update(state: Nested, variables: Variables, merged: Merged) -> tuple[Nested, Variables]:
        inner, variables = algorithm.update(state.inner, variables, merged)
        return state._replace(inner=inner), variables

    def observe(
        state: Nested, variables: Variables, report: Report
    ) -> tuple[Nested, Variables, dict[str, Any]]:
        assert algorithm.observe is not None
        inner, variables, info = algorithm.observe(state.inner, variables, report)
        return state._replace(inner=inner), variables, info

    def evaluated(state: Nested, variables: Variables) -> list[Variables]:
        assert algorithm.evaluated is not None
        return algorithm.evaluated(state.inner, variables)

    submodels = algorithm.submodels
    if submodels is not None:
        models = submodels.models
        submodels = submodels._replace(
            models=lambda state, variables: models(state.inner, variables)
        )
    merge, buffers = algorithm.merge._replace(init=begin), algorithm.merge.buffers
    if buffers is not None:
        put = buffers.put
        inside = buffers._replace(
            put=lambda state, kept: state._replace(inner=put(state.inner, kept))
        )
        merge = merge._replace(buffers=inside)
    return algorithm._replace(
        # A schedule does not read the state.
        plan=algorithm.plan if isinstance(algorithm.plan, Schedule) else plan,
        merge=merge,
        update=update,
        observe=None if algorithm.observe is None else observe,
        evaluated=None if algorithm.evaluated is None else evaluated,
        submodels=submodels,
    )
