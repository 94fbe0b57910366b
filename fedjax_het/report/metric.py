"""The target metric of a run: its name for readers, its direction, and the text of its values."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.report.units import Spread, decimals, number, percent

_LABELS = {
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "mae": "MAE",
    "mse": "MSE",
    "rmse": "RMSE",
    "r2": "R²",
    "mean_iou": "mean IoU",
    "exact_match": "exact match",
    "label_accuracy": "label accuracy",
}


@dataclass(frozen=True)
class MetricInfo:
    """The metric to which the targets of a run refer.

    Attributes:
      name: column of the metrics.
      higher_is_better: whether a higher value is better, so that a target is reached from below.
      share: whether values lie in [0, 1] and are shown in percent.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    share: bool = True

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "MetricInfo":
        """The metric of a checked summary; a summary without one is of test accuracies."""
        given = summary.get("metric")
        return cls() if given is None else cls(**{key: given[key] for key in cls.__annotations__})

    @property
    def label(self) -> str:
        """Name for readers, as `"MAE"` or `"top-5 accuracy"`."""
        top = re.fullmatch(r"top_?(\d+)(_accuracy)?", self.name)
        return f"top-{top[1]} accuracy" if top else _LABELS.get(self.name, self.name)

    @property
    def title(self) -> str:
        """The label at the start of a sentence."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def scale(self) -> float:
        """Factor from a value to the number in a plot."""
        return 100.0 if self.share else 1.0

    @property
    def unit(self) -> str:
        """Unit of the number in a plot, for the label of an axis; may be empty."""
        return " (%)" if self.share else ""

    def check_target(self, target: float) -> None:
        """Raises `InputError` unless a run could reach the target."""
        what = f"{self.name} = {target}"
        if self.share:
            require(0 < target <= 1, what, "must be in (0, 1]", "write 90 % as 0.9")
        else:
            require(math.isfinite(target), what, "must be finite", "give a number to reach")

    def rising(self, targets: Sequence[float]) -> tuple[float, ...]:
        """The targets from the easiest to the hardest, each once.

        Raises:
          InputError: for a target that is no value of the metric.
        """
        for target in targets:
            self.check_target(target)
        once = {float(target) for target in targets}
        return tuple(sorted(once, reverse=not self.higher_is_better))

    def reached(self, values: Any, target: float) -> Any:
        """Whether each value is at the target or better."""
        return values >= target if self.higher_is_better else values <= target

    def best(self, values: Sequence[float] | np.ndarray) -> float:
        """The best of the values."""
        return float(np.max(values) if self.higher_is_better else np.min(values))

    def worst_decile(self, values: np.ndarray) -> float:
        """Mean of the worst tenth of the values, at least of one."""
        worst_first = np.sort(values)[:: 1 if self.higher_is_better else -1]
        return float(np.mean(worst_first[: max(1, len(values) // 10)]))

    def text(self, value: Spread | float | None) -> str:
        """A value as `"97.03 ± 0.12 %"` or `"3.214"`; `"-"` for None."""
        return percent(value) if self.share else number(value)

    def short(self, target: float) -> str:
        """A target without needless digits: `"90 %"` or `"3.2"`."""
        return f"{100 * target:.6g} %" if self.share else f"{target:.6g}"

    def target(self, target: float) -> str:
        """A target that says of what: `"90 %"` or `"MAE 3.2"`."""
        return self.short(target) if self.share else f"{self.label} {self.short(target)}"

    def phrase(self, value: str) -> str:
        """The text of a value in a sentence: `"90 % test accuracy"` or `"a test MAE of 3.2"`."""
        return f"{value} test {self.label}" if self.share else f"a test {self.label} of {value}"

    def missed(self, value: float, target: float) -> str:
        """A value that missed a target; rounded away from it if rounding would show the target."""
        places = 4 if self.share else decimals(value, 4, 12)
        if not self.reached(round(value, places), target):
            return self.text(value)
        away = math.floor if self.higher_is_better else math.ceil
        nudge = 1e-5 if self.higher_is_better else -1e-5  # 57.00 % is stored as 0.5699999...
        return self.text(away(value * 10.0**places + nudge) / 10.0**places)
