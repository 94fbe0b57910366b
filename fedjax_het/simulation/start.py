"""The model that a run starts from, if it is not drawn."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import read_json
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models.base import BlockModel
from fedjax_het.models.saving import digest, fitted, locate, named, read, require_finite


class Start(NamedTuple):
    """The start of a run.

    Attributes:
      variables: model at the start; None if it is drawn, or if its file is gone.
      digest: digest of its values; None if it is drawn.
      place: text of the option for error messages.
    """

    variables: Variables | None = None
    digest: str | None = None
    place: str = ""

    def require_found(self) -> None:
        """Raises `InputError` if the run cannot begin because the file is gone."""
        require(
            self.variables is not None or self.digest is None,
            f"initial = {self.place}",
            "does not exist, and the run has no checkpoint from which it could continue",
            "restore the file, or use a new work directory",
        )


def find_start(
    initial: str | Path | Variables | None, model: BlockModel, workdir: str | Path | None
) -> Start:
    """The start that the options of a run ask for.

    A run that resumes does not need the file any more: if the file is gone, the digest is that
    which the work directory recorded.

    Args:
      initial: work directory of a finished run, safetensors file, variables, or None.
      model: model of the problem.
      workdir: work directory of the run, or None.

    Raises:
      InputError: if the file is missing or damaged, or names or shapes do not fit the model.
    """
    if initial is None:
        return Start()
    remedy = "start from a model with the same blocks and heads, or build this one like it"
    if isinstance(initial, Variables):
        return _start(fitted(named(initial), model.shapes, "initial", remedy), "variables")
    place = repr(str(initial))
    require(
        model.origin is None,
        f"initial = {place} with a model from freeze or lora",
        "is given to the complete model, because files hold complete parameters",
        "load it first: freeze(model, load_model(...).variables, ...), or start in a configuration",
    )
    recorded = None if workdir is None else _recorded(Path(workdir))
    if recorded is not None and not os.path.isfile(locate(initial)):
        return Start(None, recorded, place)
    arrays, _ = read(initial, "initial")
    return _start(fitted(arrays, model.shapes, f"initial = {place}", remedy), place)


def _start(variables: Variables, place: str) -> Start:
    require_finite(variables, f"initial = {place}")
    return Start(jax.tree.map(jnp.asarray, variables), digest(variables), place)


def _recorded(workdir: Path) -> str | None:
    """The digest in the identity of the run that a directory holds, if there is one."""
    path = workdir / "config.json"
    config = read_json(path) if os.path.lexists(path) else None
    identity = config.get("identity") if isinstance(config, dict) else None
    return identity.get("initial") if isinstance(identity, dict) else None


def run_keys(seed: int) -> dict[str, jax.Array]:
    """The typed PRNG keys of a run by purpose: model, state, round and plan."""
    names = ("model", "state", "round", "plan")
    return dict(zip(names, jax.random.split(jax.random.key(seed), 4), strict=True))
