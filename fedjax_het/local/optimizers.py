"""Optimisers by name, with options, for clients and servers; and what any optimiser is like.

Everything is known from optax: which options an optimiser has from its signature, and how much it
stores and whether it treats coordinates independently from a trace of its first step.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr

from fedjax_het.common import numbers
from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.jaxprs import digest
from fedjax_het.common.types import PyTree

# An optimiser by name, by name with options `{"name": "adam", "b1": 0.95}`, or itself.
Choice = str | Mapping[str, Any] | optax.GradientTransformation


def _sgd(learning_rate: float, momentum: float = 0.0, nesterov: bool = False) -> Any:
    return optax.sgd(learning_rate, momentum or None, nesterov)


def _momentum(learning_rate: float, momentum: float = 0.9) -> Any:
    return optax.sgd(learning_rate, momentum)


def _nesterov(learning_rate: float, momentum: float = 0.9) -> Any:
    return optax.sgd(learning_rate, momentum, nesterov=True)


# Those of optax that treat every coordinate by itself, under optax's names.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamw": optax.adamw,
    "adan": optax.adan,
    "amsgrad": optax.amsgrad,
    "lion": optax.lion,
    "nadam": optax.nadam,
    "nadamw": optax.nadamw,
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
    "yogi": optax.yogi,
}
# Parameters that are no options of a mapping: given beside it, or not expressible as a number.
_OWN = ("learning_rate", "weight_decay", "weight_decay_mask", "mask", "mu_dtype")
# Options that are factors of moving averages.
_SHARES = ("b1", "b2", "b3", "decay", "momentum", "rho")
_SIDE = 64


def make(
    choice: str | Mapping[str, Any],
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    what: str = "client_optimizer",
    **options: Any,
) -> optax.GradientTransformation:
    """The named optimiser.

    Args:
      choice: name, a key of `OPTIMIZERS`, or a mapping of the name as `name` and of its options.
      learning_rate: step size.
      weight_decay: factor of the decay. An optimiser with a decay of its own (AdamW, Lion) takes it
        as that, decoupled from the gradient; for all others it is coupled L2 decay, which is added
        to the gradient. 0 means none, for AdamW too.
      what: name of the choice in error messages.
      **options: further options of the optimiser.

    Raises:
      InputError: for an unknown name or option, or a value out of range.
    """
    name, given = named(choice, what)
    require_known(name, OPTIMIZERS, what)
    factory = OPTIMIZERS[name]
    parameters = inspect.signature(factory).parameters
    known = {key: p.default for key, p in parameters.items() if key not in _OWN}
    for key, value in given.items():
        require_known(key, known, f"option of {what} {name!r}")
        require(
            key not in options,
            f"{key} = {value!r} in {what}, and {key} = {options.get(key)!r} beside it",
            "is one value",
            "leave one of the two out",
        )
        _check_value(f"{what} {name!r}, {key}", key, value, known[key])
    if "weight_decay" in parameters:
        options["weight_decay"] = float(weight_decay)
    # JAX would read whole numbers as 32 bits.
    optimizer = relaxed(factory(float(learning_rate), **given, **options))
    if not weight_decay or "weight_decay" in parameters:
        return optimizer
    return optax.chain(optax.add_decayed_weights(float(weight_decay)), optimizer)


def named(choice: str | Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a choice; raises `InputError` for a mapping without a name."""
    if isinstance(choice, str):
        return choice, {}
    options = dict(choice)
    name = options.pop("name", None)
    require(
        isinstance(name, str),
        f"{what} = {dict(choice)!r}",
        "must have the name of an optimiser as 'name'",
        "e.g. {'name': 'adam', 'b1': 0.95}",
    )
    return str(name), options


def _check_value(what: str, key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        require(
            isinstance(value, bool),
            f"{what} = {value!r}",
            "must be True or False",
            f"e.g. {key} = {default}",
        )
        return
    number = numbers.is_real(value) and numbers.fits(value, float)
    below = 1.0 if key in _SHARES else math.inf
    require(
        number and 0 <= value < below,
        f"{what} = {numbers.shown(value)}",
        "must be a number of at least 0" + (" and below 1" if key in _SHARES else " and finite"),
        f"leave it out for optax's {default}",
    )


def described(choice: str | Mapping[str, Any] | optax.GradientTransformation) -> Any:
    """A choice in JSON types; an optax transformation by a digest of its first step."""
    if isinstance(choice, optax.GradientTransformation):
        return f"optax transformation {digest(trace(relaxed(choice), 'an option'))}"
    return choice if isinstance(choice, str) else dict(choice)


def relaxed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser for use under strict promotion of JAX, which optax does not keep."""

    def loose(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: PyTree) -> Any:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return function(*arguments)

        return run

    return optax.GradientTransformation(loose(optimizer.init), loose(optimizer.update))


def trace(optimizer: optax.GradientTransformation, what: str = "client_optimizer") -> ClosedJaxpr:
    """The first step on a matrix of parameters, from gradients and parameters.

    Args:
      optimizer: optimiser to trace.
      what: its name in error messages.

    Raises:
      InputError: if it takes only certain parameters. Clients may train parts of a network.
    """
    matrix = {"w": jax.ShapeDtypeStruct((_SIDE, _SIDE), jnp.float32)}

    def first(grads: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return optimizer.update(grads, optimizer.init(params), params)

    try:
        return jax.make_jaxpr(first)(matrix, matrix)
    except Exception as error:
        raise InputError(
            f"{what}: fails on a single matrix ({' '.join(str(error).split())}); "
            "it must take any tree of parameters, for clients may train parts of a network"
        ) from error


def slots(traced: ClosedJaxpr) -> int:
    """Number of arrays per parameter in the state of an optimiser, from its `trace`."""
    matrix = 4 * _SIDE**2
    held = sum(aval.size * aval.dtype.itemsize for aval in traced.out_avals) - matrix
    return (2 * held + matrix) // (2 * matrix)


def couples(traced: ClosedJaxpr) -> bool:
    """Whether a coordinate's step depends on other coordinates, from an optimiser's `trace`."""
    text = str(traced)
    return any(word in text for word in ("reduce_", "dot_general", "sort", "cumsum", "argmax"))
