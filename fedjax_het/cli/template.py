"""The configuration that `fedjax-het init` writes."""

import os
from pathlib import Path

from fedjax_het.cli.looking import Found

# Columns that are written out as features; of more, the comment on the file tells the names.
_MOST_FEATURES = 12
_MOST_COLUMNS = 40
_SAYS = {
    "inputs": "what the model sees",
    "label": "what it predicts",
    "client": "whose sample it is: a client per value",
    "split": "rows of train and of test",
    "test_inputs": "the same for testing",
    "test_label": "the same for testing",
    "test_client": "the same for testing",
}


def text(found: Found, out: Path) -> str:
    """The configuration of what was found in a file.

    Args:
      found: what was found.
      out: path of the configuration; the data are found from there.
    """
    numbers = found.kinds[found.parts["label"]] == "real"
    place = os.path.relpath(found.path.resolve(), out.resolve().parent).replace(os.sep, "/")
    data = [f'"source": "{found.source}",', f'"path": str(HERE / {_quoted(place)}),']
    data += [f'"{part}": {_quoted(name)},  # {_SAYS[part]}' for part, name in found.parts.items()]
    if found.source == "csv" and 0 < len(found.features) <= _MOST_FEATURES:
        data.append("# What the model sees; take out what it must not know.")
        data += ['"features": (', *(f"    {_quoted(name)}," for name in found.features), "),"]
    if not {"split", "test_inputs"} & set(found.parts):
        data.append("# Nothing says what is for testing: a fifth of the samples, drawn at random.")
    if "client" not in found.parts:
        dealt = '"iid"' if numbers else '"dirichlet", "alpha": 0.5'
        data.append("# Nothing says whose the samples are: they are dealt to ten clients.")
        data.append(f'"num_clients": 10, "partition": {{"name": {dealt}}},')
    model = '"cifar_cnn"' if _are_images(found) else '"mlp", "hidden": (64, 32)'
    inside = "\n".join(" " * 16 + line for line in data)
    name, stem = out.name, out.stem
    return f'''"""FedAvg and FedPMT on {_plain(found.path.name)}, which holds

{_columns(found)}

Command:   fedjax-het compare --config={name} --workdir=runs/{stem}
           fedjax-het train --config={name} --workdir=runs/{stem}-fedavg
"""

from pathlib import Path

from ml_collections import ConfigDict

HERE = Path(__file__).resolve().parent


def get_config() -> ConfigDict:
    return ConfigDict(
        {{
            "data": {{
{inside}
            }},
            # Labels are {"numbers" if numbers else "classes"}; fedjax-het list objectives
            "objective": {{"name": "{"regression" if numbers else "classification"}"}},
            # fedjax-het list models
            "model": {{"name": {model}}},
            # Phones, drawn by the seed; fedjax-het list fleets. Devices of your own:
            # {{"name": "csv", "path": "devices.csv"}}, see docs/fleets.md.
            "fleet": {{"name": "phones", "seed": 0}},
            # What all methods share, and the method of `train`; fedjax-het list methods
            "algorithm": {{"name": "fedavg", "learning_rate": 0.05, "batch_size": 16}},
            "run": {{"rounds": 50, "eval_every": 5}},
            # The methods of `compare`, with what is different in each.
            "compare": {{
                "methods": {{"FedAvg": {{}}, "FedPMT": {{"name": "fedpmt"}}}},
                "seeds": (0, 1, 2),
            }},
        }}
    )
'''


def _are_images(found: Found) -> bool:
    name = found.parts.get("inputs", "")
    axes = len(found.shapes.get(name, ()))
    return axes == 3 or (axes == 2 and found.columns[name].startswith("uint8"))


def _quoted(name: str) -> str:
    """A text of Python in double quotes where that is possible."""
    return f'"{name}"' if name.isprintable() and not set(name) & {'"', "\\"} else repr(name)


def _plain(words: str) -> str:
    """Text that cannot end a docstring or escape anything in it."""
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in words)


def _columns(found: Found) -> str:
    """A line on each column."""
    shown = list(found.columns)[:_MOST_COLUMNS]
    width = max(len(name) for name in shown)
    lines = [_plain(f"    {name:{width}}  {found.columns[name]}").rstrip() for name in shown]
    more = len(found.columns) - len(shown)
    return "\n".join([*lines, f"    and {more} more"] if more else lines)
