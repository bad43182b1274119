"""The modules of bench/, with stand-ins for what is too large for a test or needs a GPU."""

import copy
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import xdyna_kernels
from xdyna_kernels import gluon_tiles, tiles

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside this file
from tune_stand_in import BROKEN, CRASHES, GRID, MS, TOO_LARGE, WRONG, Pool, attention

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports from bench/."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


@pytest.fixture
def attn(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # The probes are large: the roof of this machine is not what is tested.
    roofline = load("roofline")

    class Probes(roofline.Probes):
        def __init__(self, device, dtype):
            self.calls = {"probe matmul": lambda: None, "probe copy": lambda: None}
            self._amounts = {"probe matmul": 1000, "probe copy": 1000}

    monkeypatch.setattr(roofline, "Probes", Probes)
    return load("attn")


@pytest.fixture
def restored_tables(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of this process are as they were when the test ends."""
    for name in load("tile_table").sources()["tiles.py"]:
        monkeypatch.setattr(tiles, name, copy.deepcopy(getattr(tiles, name)))
    # Of Gluon's, the dictionaries themselves: others have imported them.
    for rows in (gluon_tiles.TILES, gluon_tiles.KEYS, gluon_tiles.QUERIES, gluon_tiles.PROJECTION):
        for D, tile in rows.items():
            monkeypatch.setitem(rows, D, tile)


@pytest.fixture
def tune(load, restored_tables, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tune.py with the GPU stood in for: compiler, launches and clock, each by the tile that is in the table."""
    tune = load("tune")
    entry = attention(load)

    def contender(q, *rest):
        if entry.get() == CRASHES:
            raise RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448")
        return xdyna_kernels.reference_attention(q * (0.8 if entry.get() == WRONG else 1), *rest, backend="sdpa")

    def interleaved(calls, device, repeats, seed):
        times = {}
        for name, call in calls.items():
            call()
            times[name] = SimpleNamespace(median=MS.get(seen.pop(), 5.0))
        return times

    seen = []

    def build(name):
        def watched(*tensors):
            seen.append(entry.get())
            return contender(*tensors)

        return watched

    aot = importlib.import_module("xdyna_kernels.ahead_of_time")
    fine = aot.Figures(registers=100, spills=0, stack=0, shared=1000, tensor_core=1)
    large = aot.Figures(registers=100, spills=0, stack=0, shared=2**20, tensor_core=1)

    def compile_case(case):
        if case.tile == BROKEN:
            raise RuntimeError("PassManager::run failed")
        return large if case.tile == TOO_LARGE else fine

    stand = load("gpu_stand")
    monkeypatch.setattr(aot, "compile_case", compile_case)
    monkeypatch.setattr(load("gate"), "ProcessPoolExecutor", lambda **_: Pool())
    monkeypatch.setattr(stand, "interleaved", interleaved)
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(tune, "GRIDS", {key: [] for key in tune.GRIDS} | {("ATTENTION", True): GRID})
    return tune


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for module in (tiles, gluon_tiles):
        path = Path(module.__file__)
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path / "tiles.py"


@pytest.fixture
def ci(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a repository and a folder for temporary files of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    ci = load("ci")
    for folder in ("repository", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(ci, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b")
    return ci
