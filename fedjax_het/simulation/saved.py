"""Trained models in files: saving, and loading for predictions on raw samples."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_het import models
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import reason
from fedjax_het.common.jsonio import jsonable, parse_json
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import Pipeline, prepare
from fedjax_het.data.checks import STORAGE, as_storage
from fedjax_het.models.base import BlockModel
from fedjax_het.models.inputs import is_shape
from fedjax_het.models.saving import fitted, read, write
from fedjax_het.problem import Problem

# Key of what the file says about its model, as JSON.
_ABOUT = "fedjax_het"
# Largest mean and deviation of a file.
_LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained model with its preprocessing; see `load_model`.

    Attributes:
      model: model of blocks.
      variables: its trained values.
      pipeline: preprocessing of stored samples, without augmentation.
      inputs: dtypes of stored samples, one for each array of a sample.
    """

    model: BlockModel
    variables: Variables
    pipeline: Pipeline
    inputs: tuple[str, ...]

    def predict(self, x: PyTree, batch: int = 256) -> np.ndarray:
        """Outputs of the model, as in the evaluation of a run.

        Args:
          x: samples `[n, ...]` as they are stored in `FederatedData`, e.g. uint8 pixels: the
            recorded mean and deviation are applied here. Wider floats and integers are converted
            as in `data.from_arrays`.
          batch: largest number of samples per forward pass.

        Returns:
          The outputs, float32 `[n, ..., num_classes]`; logits for a classification.

        Raises:
          InputError: if the samples have another shape or dtype than those of the training.
        """
        x = jax.tree.map(functools.partial(as_storage, name="x"), x)
        leaves = jax.tree.leaves(x)
        given = tuple(leaf.dtype.name for leaf in leaves)
        require(
            given == self.inputs,
            f"x of dtype {', '.join(given)}",
            f"must be {', '.join(self.inputs)}, as the samples of the training were stored",
            "convert the samples without scaling them, e.g. x.astype(...)",
        )
        counts = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
        require(
            len(counts) == 1 and min(counts) > 0 and batch > 0,
            f"x of {sorted(counts)} samples, batch = {batch}",
            "must be at least one sample, and the same number in every array",
            "give one sample as x[None]",
        )
        (count,) = counts
        size = min(count, batch)
        outputs = []
        for begin in range(0, count, size):
            # The last pass is filled up with other samples, so that there is one program.
            places = np.arange(begin, begin + size) % count
            y = self._outputs(self.variables, jax.tree.map(lambda a, p=places: a[p], x))
            outputs.append(np.asarray(y)[: count - begin])
        return np.concatenate(outputs)

    @functools.cached_property
    def _outputs(self) -> Any:
        def outputs(variables: Variables, x: PyTree) -> jax.Array:
            return self.model.apply(variables, prepare(x, self.pipeline))[0]

        return jax.jit(outputs)


def save_model(path: str | Path, problem: Problem, variables: Variables) -> None:
    """Writes a model and its preprocessing as a safetensors file, atomically.

    Args:
      path: path of the file; its directory must exist.
      problem: problem of the run.
      variables: variables of the problem's model. If the model comes from `freeze` or `lora`, the
        file holds the complete parameters, with the adapters added.

    Raises:
      InputError: if the file cannot be written.
    """
    model, data = problem.model, problem.data
    if model.origin is not None:
        model, variables = model.origin.model, model.origin.complete(variables)
    about = {
        "name": model.name,
        "spec": model.spec,
        "mean": data.pipeline.mean,
        "std": data.pipeline.std,
        "inputs": [leaf.dtype.name for leaf in jax.tree.leaves(data.x)],
    }
    write(path, variables, {_ABOUT: json.dumps(jsonable(about, "model"))})


def load_model(place: str | Path, model: BlockModel | None = None) -> SavedModel:
    """A trained model and its predictions, from a work directory or a file.

    Two lines after a run, also after one of the command line::

        trained = fh.load_model("runs/digits")    # after `fedjax-het train --workdir=runs/digits`
        classes = trained.predict(images).argmax(-1)

    Args:
      place: work directory of a run that has reached its end, or file of `Result.save`. The runs
        of `seeds=` and of comparisons have directories of their own. The file holds the global
        model, also of a method that evaluates models of its devices (FedGKT).
      model: model with these parameters; needed only if it was not made by `models.build`. Names
        and shapes are compared.

    Returns:
      The model, its variables and a function that predicts.

    Raises:
      InputError: if there is no such file, or it does not fit the model.
    """
    arrays, metadata = read(place, "place")
    about = _about(metadata, place)
    if model is None:
        model = _built(about, place)
    remedy = "give the model of the run: load_model(place, model=...)"
    variables = fitted(arrays, model.shapes, f"place = {str(place)!r}", remedy)
    pipeline = Pipeline(tuple(about["mean"]), tuple(about["std"]))
    shape = model.input_shape
    channels = shape[-1] if is_shape(shape) else 1
    inputs = tuple(about["inputs"])
    require(
        {len(pipeline.mean), len(pipeline.std)} <= {1, channels}
        and len(inputs) == len(jax.tree.leaves(model.input_dtype)),
        f"place = {str(place)!r}: {len(pipeline.mean)} means, {len(pipeline.std)} deviations, "
        f"inputs of {', '.join(inputs)}",
        f"does not fit inputs {shape} of the model",
        remedy,
    )
    return SavedModel(model, jax.tree.map(jax.numpy.asarray, variables), pipeline, inputs)


def _about(metadata: Mapping[str, str], place: str | Path) -> dict[str, Any]:
    """What the file says about its model, checked."""
    what = f"place = {str(place)!r}"
    remedy = "a file of other origin can be the start of a run, simulate(initial=...)"
    told = metadata.get(_ABOUT, "{}").encode(errors="replace")
    about = parse_json(told, f"{what}, metadata {_ABOUT}", remedy)
    known = about if isinstance(about, dict) else {}
    missing = sorted({"name", "spec", "mean", "std", "inputs"} - set(known)) if known else [_ABOUT]
    require(
        not missing,
        what,
        f"does not say how its model was made (metadata {', '.join(missing)})",
        remedy,
    )
    mean, std, inputs = (known[name] for name in ("mean", "std", "inputs"))
    require(
        isinstance(known["name"], str)
        and _are_numbers(mean)
        and _are_numbers(std)
        and min(std) > 0
        and isinstance(inputs, list)
        and all(dtype in tuple(STORAGE) for dtype in inputs),
        f"{what}, metadata {_ABOUT}: name = {known['name']!r}, mean = {mean!r}, std = {std!r}, "
        f"inputs = {inputs!r}",
        f"must be text, numbers, numbers > 0, and some of {', '.join(STORAGE)}",
        remedy,
    )
    return known


def _are_numbers(values: Any) -> bool:
    """Whether a value of JSON is a list of one or more numbers that float32 can compute with."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(v) in (int, float) and abs(v) < _LARGEST for v in values)
    )


def _built(about: Mapping[str, Any], place: str | Path) -> BlockModel:
    """The model of a file, made again from its options."""
    what, remedy = f"place = {str(place)!r}", "give the model: load_model(place, model=...)"
    require(
        about["spec"] is not None,
        what,
        f"holds model {about['name']!r}, which models.build did not make",
        remedy,
    )
    try:
        spec = dict(about["spec"])
        model = models.build(input_shape=_shape(spec.pop("input_shape")), **spec)
        jax.tree.leaves(model.shapes)  # traces the model
        return model
    # Whatever goes wrong here is the fault of the file, which this version of the package or
    # another hand may have written.
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise InputError(
            f"{what}: its model cannot be made again ({reason(error)}); {remedy}"
        ) from None


def _shape(value: Any) -> Any:
    """A shape, or dictionary or tuple of shapes, that JSON made of lists."""
    if isinstance(value, dict):
        return {name: _shape(each) for name, each in value.items()}
    return tuple(map(_shape, value)) if isinstance(value, list) else value
