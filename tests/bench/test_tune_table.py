"""The tables that --tune fills: what their entries serve, which tiles are tried, and that files read as written."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tune_stand_in import CHIP
from xdyna_kernels import gluon_tiles, tiles

pytest.importorskip("triton", reason="candidates are compiled by triton")

ROOT = Path(__file__).parents[2]


def test_the_grids_fit_the_table_and_hold_powers_of_two(load):
    tune, tile_table = load("tune"), load("tile_table")
    kinds = dict.fromkeys(tile_table.TABLES, tiles.Attention)
    kinds |= {"PROJECTION": tiles.Projection} | dict.fromkeys(tile_table.GLUON, gluon_tiles.Tile)
    kinds["GLUON_PROJECTION"] = gluon_tiles.Projection
    assert {name for name, _ in tune.GRIDS} == set(tile_table.TABLES)
    for (name, _), grid in tune.GRIDS.items():
        assert len(set(grid)) == len(grid)
        assert (
            10 < len({tile[:4] if name in tile_table.GLUON else tile for tile in grid}) <= 50
        )  # compiled, each shape's
        for tile in grid:
            assert isinstance(tile, kinds[name])
            if isinstance(tile, gluon_tiles.Projection):
                sizes = (tile.rows, tile.depth, tile.columns & (tile.columns - 1) or 1)  # a power of two, or two
            else:
                sizes = tile[:-1] if name not in tile_table.GLUON else (tile.queries, tile.keys)
            assert all(size & (size - 1) == 0 for size in sizes)
    for name in set(tile_table.GLUON) - {"GLUON_PROJECTION"}:
        assert {tile.warpgroups for tile in tune.GRIDS[name, True]} == set(gluon_tiles.REGISTERS)


def test_gluon_has_entries_for_hopper_in_half_precision_only(load):
    entries = load("tile_table").entries
    found = [(chip, kind) for chip in ("sm_80", "sm_90", "sm_100") for kind in ("half", "tf32", "ieee")]
    assert [pair for pair in found if any(e.backend == "gluon" for e in entries(*pair))] == [(CHIP, "half")]
    gluon = [entry for entry in entries(CHIP, "half") if entry.backend == "gluon"]
    assert {entry.table for entry in gluon} == {"GLUON", "GLUON_KEYS", "GLUON_QUERIES"}
    shape = load("shapes").Shape
    served = [
        [(N, D) for N in (18, 20) for D in (32, 40, 48, 80, 160) if e.serves(shape(1, 2, N, 2, D))] for e in gluon
    ]
    # Each its width of heads alone; of the keys', no tokens but in fours.
    any_number = [[(18, D), (20, D)] for D in (40, 80, 160)]
    assert served == [*any_number, [(20, 40)], [(20, 80)], *any_number[:2]]
    of_all = [entry for entry in entries(CHIP, "half") if entry.backend == "gluon_all"]
    served = [[(H, D) for H in (2, 8) for D in (8, 40, 80, 160) if e.serves(shape(1, 2, 5, H, D))] for e in of_all]
    # By their output channels, the last one all beyond.
    small = [(2, 8), (2, 40), (2, 80), (2, 160), (8, 8), (8, 40)]
    assert dict(zip(map(str, of_all), served, strict=True)) == {
        "sm_90 half gluon projection C <= 320": small,
        "sm_90 half gluon projection C <= 640": [(8, 80)],
        "sm_90 half gluon projection C <= 1280": [(8, 160)],
    }
    assert (str(gluon[0]), str(gluon[-1])) == ("sm_90 half gluon D = 40", "sm_90 half gluon queries D = 80")


def test_the_table_is_written_as_it_stands(load):
    """A table that did not change is the same file, to the byte."""
    tile_table, folder = load("tile_table"), Path(tiles.__file__).parent
    for name, tables in tile_table.sources().items():
        source = (folder / name).read_text()
        assert tile_table.rewrite(source, tables) == source


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["sm_80", "sm_90"]), st.sampled_from(["half", "ieee"])),
        st.dictionaries(st.integers(8, 256), st.builds(tiles.Attention, *[st.integers(1, 256)] * 4), max_size=3),
    ),
    st.dictionaries(st.tuples(st.text(max_size=5), st.none() | st.integers()), st.text(max_size=20), max_size=3),
)
def test_any_table_reads_back_as_it_was_written(attention, timed):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        rewrite = importlib.import_module("tile_table").rewrite
    source = "# before\nA: dict = {1: 2}\n# between\nB = {}\nC = 3  # after\n"
    text = rewrite(source, {"A": attention, "B": timed})
    found: dict = {"Attention": tiles.Attention}
    exec(text, found)
    assert (found["A"], found["B"], found["C"]) == (attention, timed, 3)
    assert re.findall(r"#.*", text)[0] == "# before"
    assert text.endswith("C = 3  # after\n")
    assert len(ast.parse(text).body) == 3
