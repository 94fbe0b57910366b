"""Measured times of a model's blocks, and their file."""

import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import write_json

FORMAT = 1
_COUNTS = ("batch", "repeats", "num_blocks")
_COLUMNS = (
    "forward_s",
    "weight_grad_s",
    "input_grad_s",
    "xla_forward_flops",
    "xla_backward_flops",
)
_REMEDY = "measure again with launch/profile.py"


@dataclass(frozen=True)
class MeasuredProfile:
    """Seconds per batch and XLA's FLOP counts; one entry per block, then one per exit head.

    Attributes:
      model: name of the model.
      backend: `jax.default_backend()` and the kind of device.
      batch: samples per call.
      repeats: number of timed calls, of which the median was taken.
      names: names of the blocks, then of the heads.
      num_blocks: number of blocks, L; the entries from L on are the heads after blocks 0, 1, ...
      forward_s: seconds of the forward pass.
      weight_grad_s: seconds of the backward pass to the block's parameters.
      input_grad_s: additional seconds of the gradient of its input; 0 if no difference was
        measured.
      xla_forward_flops: FLOPs of the compiled forward pass by `cost_analysis`, of all operations.
      xla_backward_flops: FLOPs of the backward pass to parameters and input, counted likewise.
    """

    model: str
    backend: str
    batch: int
    repeats: int
    names: tuple[str, ...]
    num_blocks: int
    forward_s: tuple[float, ...]
    weight_grad_s: tuple[float, ...]
    input_grad_s: tuple[float, ...]
    xla_forward_flops: tuple[float, ...]
    xla_backward_flops: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Seconds per batch of one step of the whole network without exit heads."""
        blocks = slice(self.num_blocks)
        parts = (
            *self.forward_s[blocks],
            *self.weight_grad_s[blocks],
            *self.input_grad_s[blocks][1:],
        )
        return float(sum(parts))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile as JSON."""
        write_json(Path(path), {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MeasuredProfile":
        """Reads a file written by `save`; raises InputError if it is not a usable one."""
        content = read_json(Path(path), _REMEDY, None)
        content = content if isinstance(content, dict) else {}
        version = content.get("format")
        require(version == FORMAT, f"{path}: format {version!r}", f"must be {FORMAT}", _REMEDY)
        names = [field.name for field in fields(cls)]
        differing = sorted({*names, "format"} ^ set(content))
        require(
            not differing,
            f"{path}: not a profile",
            f"lacks {differing} or should not have it",
            _REMEDY,
        )
        values: dict[str, Any] = {name: content[name] for name in names}
        lists = ("names", *_COLUMNS)
        wrong = [name for name in ("model", "backend") if not isinstance(values[name], str)]
        wrong += [name for name in _COUNTS if not (_is_whole(values[name]) and values[name] >= 1)]
        wrong += [name for name in lists if not isinstance(values[name], list)]
        require(not wrong, f"{path}: not a profile", f"{wrong} of another type", _REMEDY)
        values |= {name: tuple(values[name]) for name in lists}
        profile = cls(**values)
        require(
            all(isinstance(name, str) for name in profile.names)
            and profile.num_blocks <= len(profile.names),
            f"{path}: names {list(profile.names)}",
            f"must be text, for {profile.num_blocks} blocks and perhaps heads",
            _REMEDY,
        )
        good = all(
            len(values[name]) == len(profile.names) and all(map(_is_amount, values[name]))
            for name in _COLUMNS
        )
        require(good, f"{path}", "must hold one finite number >= 0 per block and column", _REMEDY)
        require(profile.step_s > 0, f"{path}: a step of 0 s", "must take time", _REMEDY)
        return profile


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**63


def _is_amount(value: Any) -> bool:
    return (isinstance(value, float) or _is_whole(value)) and 0 <= value < math.inf
