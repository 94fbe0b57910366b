"""Style and rendering of figures; the same runs give the same bytes."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

P = ParamSpec("P")

# The palette of Okabe and Ito, which people with any colour vision can distinguish; grey replaces
# its pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[str, ...] = ("-", "--", ":", "-.")
WAITING = "#E4E4E4"

_LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.7,
    "legend.columnspacing": 1.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.facecolor": "white",
}


@contextmanager
def look() -> Iterator[None]:
    """Applies the settings of all figures, independently of the user's defaults."""
    with style.context(["default", _LOOK]):
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Runs a drawing function under `look`."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with look():
            return draw(*args, **kwargs)

    return inner


def method_style(i: int) -> dict[str, str]:
    """Colour, marker and dashes of the i-th method; dashes differ if a colour repeats."""
    n = len(PALETTE)
    return {"color": PALETTE[i % n], "marker": MARKERS[i % n], "linestyle": DASHES[i // n % 4]}


def plain(text: str) -> str:
    """A name as matplotlib text: without mathematics, and always shown in a legend."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def legend_above(
    figure: Figure, entries: list[tuple[str, Line2D | Patch]], columns: int | None = None
) -> None:
    """Adds a legend above all axes, where it covers no data."""
    if entries:
        names, handles = zip(*entries, strict=True)
        longest = max(len(name) for name in names)
        fitting = max(1, int(figure.get_figwidth() * 11) // (longest + 7))
        figure.legend(
            handles,
            [plain(name) for name in names],
            loc="outside upper center",
            ncols=columns or min(fitting, len(names), 4),
        )


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the date."""
    return _render(figure, "png", {"Software": None})


def pdf(figure: Figure) -> bytes:
    """The figure as PDF with its fonts inside, without the date."""
    return _render(figure, "pdf", {"CreationDate": None})


def svg(figure: Figure, salt: str) -> bytes:
    """The figure as SVG, without the date; text is paths.

    Args:
      figure: figure to draw.
      salt: text that decides the ids.
    """
    return _render(figure, "svg", {"Date": None}, salt)


def inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """The figure as an `<svg>` element that can be placed in a page with other figures.

    Ids and the references to them get the prefix, because matplotlib uses the same ids in every
    figure; namespaces and metadata, which HTML does not need, are left out.

    Args:
      figure: figure to draw.
      prefix: prefix of ids, unique in the page; letters, digits and `-`.
      description: sentence for readers who cannot see the figure.
    """
    text = svg(figure, prefix).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', text)
    assert size is not None
    opening = (
        f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-label="{description}" '
        f'style="max-width:{float(size[1]) * 1.45:.0f}px">'
    )
    return opening + text[text.index(">") + 1 :].strip()


def _render(
    figure: Figure, kind: str, metadata: dict[str, None], salt: str = "fedjax_het"
) -> bytes:
    buffer = io.BytesIO()
    with look(), style.context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
