"""The entries of xdyna_kernels/tiles.py: read, tried out in this process, and written back as source.

The table is Python, so that it is read without a parser, reviewed as a diff and checked as types. Only the values of
its assignments are rewritten; comments and everything else of the file stay as they are.
"""

import ast
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapes import Shape
from xdyna_kernels import tiles

Tile = tiles.Attention | tiles.Projection
# Names in tiles.py, and the direction of the bench that shows what their tiles do.
TABLES = {
    "ATTENTION": "forward",
    "PROJECTION": "forward",
    "BACKWARD_QUERIES": "forward+backward",
    "BACKWARD_KEYS": "forward+backward",
}


@dataclass(frozen=True)
class Entry:
    """One tile of the table. `limit` is the largest head dimension that it serves; of a projection, the most output
    channels, and the last one serves all beyond."""

    table: str  # of TABLES
    chip: str
    arithmetic: str
    limit: int

    def __str__(self) -> str:
        size = "C" if self.table == "PROJECTION" else "D"
        return f"{self.chip} {self.arithmetic} {self.table.lower().replace('_', ' ')} {size} <= {self.limit}"

    @property
    def direction(self) -> str:
        return TABLES[self.table]

    def serves(self, shape: Shape) -> bool:
        """Whether a shape takes its tile from here."""
        rows = self._rows()[self.chip, self.arithmetic]
        if self.table == "PROJECTION":
            return self.limit == min((limit for limit in rows if limit >= shape.C), default=max(rows))
        return self.limit == min((limit for limit in rows if limit >= shape.D), default=None)

    def get(self) -> Tile:
        return self._rows()[self.chip, self.arithmetic][self.limit]

    def put(self, tile: Tile) -> None:
        """Changes the table of this process, not the file."""
        self._rows()[self.chip, self.arithmetic][self.limit] = tile

    @contextmanager
    def trying(self, tile: Tile) -> Iterator[None]:
        before = self.get()
        self.put(tile)
        try:
            yield
        finally:
            self.put(before)

    def _rows(self) -> dict[tuple[str, str], Any]:
        return getattr(tiles, self.table)


def entries(chip: str, arithmetic: str) -> list[Entry]:
    """All entries of a chip and an arithmetic. A table may lack an arithmetic: its kernels then do without."""
    found = []
    for table in TABLES:
        found += [Entry(table, chip, arithmetic, limit) for limit in getattr(tiles, table).get((chip, arithmetic), {})]
    return found


def write(path: Path) -> None:
    """Brings the file at `path` to the table of this process: whole, or on any error not at all.

    Raises:
        OSError: it cannot be read or written.
    """
    text = rewrite(path.read_text(), {name: getattr(tiles, name) for name in (*TABLES, "TIMED")})
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    try:
        with open(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.chmod(draft, path.stat().st_mode)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def rewrite(source: str, tables: dict[str, dict]) -> str:
    """The source with other values assigned to the names of `tables`.

    Raises:
        KeyError: a name is assigned nowhere in it.
    """
    lines = source.splitlines(keepends=True)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    for name in sorted(tables, key=lambda name: found[name].lineno, reverse=True):  # from the end: lines move
        value = found[name]
        first, last = value.lineno - 1, value.end_lineno
        head, tail = lines[first][: value.col_offset], lines[last - 1][value.end_col_offset :]  # the file is ASCII
        lines[first:last] = [head + _literal(tables[name]) + tail]
    return "".join(lines)


def _literal(value: Any, indent: str = "") -> str:
    """As the formatter writes it: a dictionary has one entry a line."""
    if isinstance(value, dict) and value:
        inner = indent + "    "
        rows = "".join(f"{inner}{_literal(key)}: {_literal(item, inner)},\n" for key, item in value.items())
        return f"{{\n{rows}{indent}}}"
    if hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(map(str, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    if isinstance(value, str):
        return '"' + value.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    return repr(value)
