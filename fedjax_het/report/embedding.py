"""What a page holds so that it needs no other file: styles, scripts, data, and their licence."""

import base64
import hashlib
import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).with_name("assets")
LIBRARY, LIBRARY_STYLE = "uPlot.iife.min.js", "uPlot.min.css"
# In the order in which they build on each other; `assets/page.js` is the one that starts.
SCRIPTS = (LIBRARY, "dom.js", "numbers.js", "chart.js", "table.js", "clients.js", "page.js")
STYLES = (LIBRARY_STYLE, "page.css")
DATA_ID = "report-data"


@cache
def asset(name: str) -> str:
    """The text of a file of the package's `report/assets`."""
    return (ASSETS / name).read_text(encoding="utf-8").strip()


def policy(live: bool) -> str:
    """The Content-Security-Policy of a page: its own scripts run, and no request leaves it.

    Args:
      live: whether the page asks the server that it came from for news.
    """
    rules = [
        "default-src 'none'",
        f"script-src {' '.join(map(_digest, SCRIPTS))}",
        "style-src 'unsafe-inline'",  # figures have style attributes
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules + (["connect-src 'self'"] if live else []))


def _digest(name: str) -> str:
    found = hashlib.sha256(asset(name).encode()).digest()
    return f"'sha256-{base64.b64encode(found).decode()}'"


def styles() -> str:
    """The `<style>` element."""
    return "<style>\n" + "\n".join(map(asset, STYLES)) + "\n</style>"


def scripts(data: Any) -> str:
    """The elements of the data and of the scripts, in this order.

    Args:
      data: value of JSON types that the scripts show.
    """
    # No text of the data may end the element.
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    held = f'<script type="application/json" id="{DATA_ID}">{text}</script>'
    return "\n".join([held, *(f"<script>{asset(name)}</script>" for name in SCRIPTS)])


def licence() -> str:
    """The licence of the plotting library with its name, version and size, which the page shows."""
    about = json.loads(asset("uPlot.json"))
    size = sum((ASSETS / name).stat().st_size for name in (LIBRARY, LIBRARY_STYLE))
    told = (
        f"Charts by {about['name']} {about['version']}, {about['licence']} licence, "
        f"{size:,} bytes inside this file."
    )
    return (
        f'<details class="licence"><summary>{escape(told)}</summary>'
        f"<pre>{escape(asset('uPlot.LICENSE'))}</pre></details>"
    )
