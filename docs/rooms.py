"""Draws the rooms of the package into `docs/architecture.md`: `make rooms`.

The floors are the layers of the contract in `pyproject.toml`; what is said of a room is the first
line of its docstring; the arrows are the imports as they are. A test holds the picture current.
"""

import ast
import sys
import textwrap
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fedjax_het"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- rooms: begin -->"
END = "<!-- rooms: end -->"
WIDTH = 110


def floors() -> list[list[str]]:
    """The rooms, floor by floor from the top, as the contract lists them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in settings["contracts"] if c["id"] == "rooms"]
    rooms = [[name.strip() for name in layer.split("|")] for layer in layers]
    present = [[name.strip("()") for name in floor if _path(name.strip("()"))] for floor in rooms]
    return [floor for floor in present if floor]


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    sys.path.insert(0, str(ROOT))
    try:
        graph = grimp.build_graph(PACKAGE, cache_dir=None)
    finally:
        sys.path.remove(str(ROOT))
    pairs = {
        (_room(importer), _room(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    return {(a, b) for a, b in pairs if a != b and a and b}


def picture() -> str:
    """What stands between the markers: the floors as boxes, and who imports whom."""
    storeys, pairs = floors(), arrows()
    rooms = [room for floor in storeys for room in floor]
    names = [f"{number:2} {room}" for number, room in enumerate(rooms, 1)]
    margin = max(map(len, names))
    matrix = [" " * margin + "".join(f"{number:4}" for number in range(1, len(rooms) + 1))]
    for name, row in zip(names, rooms, strict=True):
        matrix.append(
            f"{name:{margin}}" + "".join(f"{_mark(row, room, pairs):>4}" for room in rooms)
        )
    counts = f"{len(rooms)} rooms on {len(storeys)} floors, {len(pairs)} arrows between them."
    return f"""{counts}
A room imports from the floors below it only. The small names in a box are its modules.

{_fenced(_boxes(storeys))}

The room of the row imports the room of the column where there is an x. Every x stands to the
right of the diagonal, because imports point down.

{_fenced(matrix)}"""


def insert(page: str, block: str) -> str:
    """The page with the block between its two markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _path(room: str) -> Path | None:
    """The file with the room's docstring; None if there is no such room."""
    folder = ROOT / PACKAGE / room
    paths = (folder / "__init__.py", folder.with_suffix(".py"))
    return next((path for path in paths if path.is_file()), None)


def _room(module: str) -> str | None:
    """The room that a module is in; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def _modules(room: str) -> str:
    folder = ROOT / PACKAGE / room
    names = [path.parent.name + "/" for path in folder.glob("*/__init__.py")]
    names += [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    return "  ".join(sorted(names))


def _mark(row: str, column: str, pairs: set[tuple[str, str]]) -> str:
    return "\\" if row == column else "x" if (row, column) in pairs else "."


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```"])


def _boxes(storeys: list[list[str]]) -> list[str]:
    """Floors of rooms side by side, as wide as all others."""
    lines: list[str] = []
    above: set[int] = set()
    for floor in storeys:
        inner = WIDTH - len(floor) - 1
        widths = [inner // len(floor)] * len(floor)
        widths[-1] += inner - sum(widths)
        walls = {sum(widths[:i]) + i for i in range(1, len(floor))}
        lines.append(_line(above, walls, first=not lines))
        cells = [_cell(room, width - 2) for room, width in zip(floor, widths, strict=True)]
        for row in range(max(map(len, cells))):
            texts = [cell[row] if row < len(cell) else "" for cell in cells]
            columns = (f" {text:{w - 2}} " for text, w in zip(texts, widths, strict=True))
            lines.append("│" + "│".join(columns) + "│")
        above = walls
    return [*lines, _line(above, set(), last=True)]


def _line(above: set[int], below: set[int], first: bool = False, last: bool = False) -> str:
    """A floor between two storeys, given where their walls stand."""
    joints = {(False, False): "─", (True, False): "┴", (False, True): "┬", (True, True): "┼"}
    middle = "".join(joints[at in above, at in below] for at in range(1, WIDTH - 1))
    left, right = ("┌", "┐") if first else ("└", "┘") if last else ("├", "┤")
    return left + middle + right


def _cell(room: str, width: int) -> list[str]:
    """What stands in a room: its name, what it is, and its modules."""
    path = _path(room)
    assert path is not None
    said = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    parts = (room.upper(), said, _modules(room))
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return [line for part in parts for line in wrapper.wrap(part)]


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text(), picture()))
