"""Notes on methods of a comparison whose clients train with different optimisers or schedules.

A method may have its paper's optimiser, and then a comparison shows the optimisers as much as the
methods. Learning rates are tuned per method, so they are listed but are no difference.
"""

from collections.abc import Mapping
from typing import Any

_OPTIMISER = {
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "clip_norm": "gradient norm at most",
}
_SCHEDULE = {
    "decay_rounds": "decay rounds",
    "decay_factor": "decay factor",
    "warmup_rounds": "warm-up rounds",
}
_UNUSED = {"constant": ("decay_rounds", "decay_factor"), "inverse": ("decay_factor",)}
_RECORDED = ("client_optimizer", "learning_rate", "schedule", *_OPTIMISER, *_SCHEDULE)


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded options of the clients' optimiser; empty if the run recorded none.

    Args:
      config: configuration of a record: `identity.options` holds the options of the method, or
        `algorithm` in a record without it.
    """
    identity = config.get("identity")
    options = identity.get("options") if isinstance(identity, Mapping) else None
    for given in (options, config.get("algorithm")):
        if isinstance(given, Mapping) and {"client_optimizer", "schedule"} & set(given):
            return {key: given[key] for key in _RECORDED if key in given}
    return {}


def training_notes(training: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on the optimisers and on the schedules of the methods, if they differ.

    Args:
      training: results of `training_of` by method; a method without options is left out.
    """
    known = {name: options for name, options in training.items() if options}
    notes = []
    optimisers = {n: _optimiser(o) for n, o in known.items() if "client_optimizer" in o}
    if len(set(optimisers.values())) > 1:
        with_rates = {n: text + _rate(known[n]) for n, text in optimisers.items()}
        notes.append(f"Optimisers differ: {_listed(with_rates)}.")
    schedules = {name: _schedule(options) for name, options in known.items()}
    if len(set(schedules.values())) > 1:
        notes.append(f"Learning-rate schedules differ: {_listed(schedules)}.")
    return notes


def _optimiser(options: Mapping[str, Any]) -> str:
    choice = options["client_optimizer"]
    own = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    name = str(own.pop("name", "optimiser"))
    return ", ".join([name, *_given(own, {k: k for k in own}), *_given(options, _OPTIMISER)])


def _rate(options: Mapping[str, Any]) -> str:
    rate = options.get("learning_rate")
    return "" if rate is None else f", learning rate {_value(rate)}"


def _schedule(options: Mapping[str, Any]) -> str:
    """The schedule with the parameters that it uses."""
    name = options.get("schedule") or "constant"
    used = {key: word for key, word in _SCHEDULE.items() if key not in _UNUSED.get(name, ())}
    return ", ".join([str(name), *_given(options, used)])


def _given(options: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Words and values of the options that are set; zero and null are off."""
    return [f"{word} {_value(options[key])}" for key, word in names.items() if options.get(key)]


def _value(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if number else str(value)


def _listed(texts: Mapping[str, str]) -> str:
    """The texts, each with the methods that it holds for."""
    of: dict[str, list[str]] = {}
    for name, text in texts.items():
        of.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)} {text}" for text, names in of.items())
