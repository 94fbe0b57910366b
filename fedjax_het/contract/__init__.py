"""Types that pass between the rooms, and the types of the five questions that a method answers.

Who takes part (`selection`), what a client trains (`masks`), how (`Algorithm.local`), when the
server merges (`clock`), and how it merges (`aggregation`).
"""

from fedjax_het.contract import aggregation, clock, masks, selection, staleness
from fedjax_het.contract.aggregation import Term, masked_mean, normalised_mean, plain_mean
from fedjax_het.contract.algorithm import (
    Aggregator,
    Algorithm,
    Chunk,
    ClientResult,
    Merged,
    Report,
    Task,
    Variables,
)
from fedjax_het.contract.clock import Closing, Flight, Interruptions, Pace, Status
from fedjax_het.contract.masks import Route
from fedjax_het.contract.memory import Buffers, Memory
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Question, Schedule, Situation, Timing
from fedjax_het.contract.selection import Candidates, Known, Seen, Selector
from fedjax_het.contract.submodels import SubModels
from fedjax_het.contract.uploads import Draw, Upload
from fedjax_het.contract.widths import Axes, Layout, Span, Widths

__all__ = [
    "Aggregator",
    "Algorithm",
    "Axes",
    "Buffers",
    "Candidates",
    "Chunk",
    "ClientResult",
    "Closing",
    "Draw",
    "Flight",
    "Interruptions",
    "Known",
    "Layout",
    "Memory",
    "Merged",
    "Pace",
    "Paces",
    "Plan",
    "Question",
    "Report",
    "Route",
    "Schedule",
    "Seen",
    "Selector",
    "Situation",
    "Span",
    "Status",
    "SubModels",
    "Task",
    "Term",
    "Timing",
    "Upload",
    "Variables",
    "Widths",
    "aggregation",
    "clock",
    "masked_mean",
    "masks",
    "normalised_mean",
    "plain_mean",
    "selection",
    "staleness",
]
