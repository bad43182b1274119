"""The entries of xdyna_kernels/tiles.py and gluon_tiles.py: read, tried out in this process, written back as source.

The tables are Python, so that they are read without a parser, reviewed as a diff and checked as types. Only the values
of their assignments are rewritten; comments and everything else of the files stay as they are.
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
from xdyna_kernels import gluon_tiles, tiles

Tile = tiles.Attention | tiles.Projection | gluon_tiles.Tile | gluon_tiles.Projection
# Names in tiles.py, and the direction of the bench that shows what their tiles do; those in GLUON, in gluon_tiles.py.
TABLES = {
    "ATTENTION": "forward",
    "PROJECTION": "forward",
    "BACKWARD_QUERIES": "forward+backward",
    "BACKWARD_KEYS": "forward+backward",
    "GLUON": "forward",
    "GLUON_PROJECTION": "forward",
    "GLUON_KEYS": "forward+backward",
    "GLUON_QUERIES": "forward+backward",
}
GLUON = {"GLUON": "TILES", "GLUON_PROJECTION": "PROJECTION", "GLUON_KEYS": "KEYS", "GLUON_QUERIES": "QUERIES"}


@dataclass(frozen=True)
class Entry:
    """One tile of a table. `limit` is the largest head dimension that it serves; of Gluon, the only one; of a
    projection, the most output channels, and the last one serves all beyond."""

    table: str  # of TABLES
    chip: str
    arithmetic: str
    limit: int

    def __str__(self) -> str:
        size = "C <=" if self._by_channels else "D =" if self.table in GLUON else "D <="
        return f"{self.chip} {self.arithmetic} {self.table.lower().replace('_', ' ')} {size} {self.limit}"

    @property
    def backend(self) -> str:
        """Whose tile it is."""
        return "gluon_all" if self.table == "GLUON_PROJECTION" else "gluon" if self.table in GLUON else "triton"

    @property
    def direction(self) -> str:
        return TABLES[self.table]

    def serves(self, shape: Shape) -> bool:
        """Whether a shape takes its tile from here."""
        rows = self._rows()
        if self._by_channels:
            return self.limit == min((limit for limit in rows if limit >= shape.C), default=max(rows))
        if self.table in GLUON:
            # Gluon's kernel of the keys leaves the other numbers of tokens to Triton's.
            return self.limit == shape.D and (self.table != "GLUON_KEYS" or shape.N % 4 == 0)
        return self.limit == min((limit for limit in rows if limit >= shape.D), default=None)

    def get(self) -> Tile:
        return self._rows()[self.limit]

    def put(self, tile: Tile) -> None:
        """Changes the table of this process, not the file."""
        self._rows()[self.limit] = tile

    @contextmanager
    def trying(self, tile: Tile) -> Iterator[None]:
        before = self.get()
        self.put(tile)
        try:
            yield
        finally:
            self.put(before)

    @property
    def _by_channels(self) -> bool:
        return self.table.endswith("PROJECTION")

    def _rows(self) -> dict[int, Any]:
        return rows_of(self.table, self.chip, self.arithmetic)


def rows_of(table: str, chip: str, arithmetic: str) -> dict[int, Any]:
    """The tiles by their limits, themselves and no copy; none where the table lacks an arithmetic or a chip."""
    if table in GLUON:
        return getattr(gluon_tiles, GLUON[table]) if (chip, arithmetic) == ("sm_90", "half") else {}
    return getattr(tiles, table).get((chip, arithmetic), {})


def entries(chip: str, arithmetic: str) -> list[Entry]:
    """All entries of a chip and an arithmetic. A table may lack an arithmetic: its kernels then do without."""
    return [Entry(table, chip, arithmetic, limit) for table in TABLES for limit in rows_of(table, chip, arithmetic)]


def sources() -> dict[str, dict[str, dict]]:
    """By file name, what its assignments are to hold: the tables of this process."""
    of_triton = {name: getattr(tiles, name) for name in (*TABLES, "TIMED") if name not in GLUON}
    return {"tiles.py": of_triton, "gluon_tiles.py": {name: getattr(gluon_tiles, name) for name in GLUON.values()}}


def write(folder: Path) -> None:
    """Brings the files in `folder` to the tables of this process: each whole, or on any error not at all.

    Raises:
        OSError: one cannot be read or written.
    """
    texts = {folder / name: rewrite((folder / name).read_text(), tables) for name, tables in sources().items()}
    for path, text in texts.items():
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
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
    if isinstance(value, Tile):
        fields, default = value._asdict(), value._field_defaults
        sizes = [str(x) for name, x in fields.items() if name not in default]
        others = [f"{name}={x}" for name, x in fields.items() if name in default and x != default[name]]
        return f"{type(value).__name__}({', '.join(sizes + others)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    if isinstance(value, str):
        return '"' + value.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    return repr(value)
