"""Steps replayed from CUDA graphs are the steps that would have run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from xdyna_model.nano import nano_pipeline
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.train import fit

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@pytest.mark.parametrize("on_cpu", [True, pytest.param(False, marks=ON_GPU)])
def test_the_curve_is_the_same(on_cpu, tmp_path: Path, steps: Callable, new_pipeline, waves, lines, monkeypatch):
    """Through the change of stage, where the graphs are captured anew; a CPU has none, and goes on without."""
    if on_cpu:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    curves: list[list[dict[str, Any]]] = []
    for graphs in (False, True):
        fit(new_pipeline(), waves, steps(5, cuda_graphs=graphs), tmp_path / str(graphs))
        curves.append(lines(tmp_path / str(graphs)))
    plain, replayed = ([(line["loss"], line["grad_norm"]) for line in curve] for curve in curves)
    assert len(plain) == 5
    assert torch.tensor(replayed).allclose(torch.tensor(plain), rtol=0 if on_cpu else 1e-3, atol=0)


@ON_GPU
def test_a_model_that_guesses_drifts_is_captured_with_its_guesses(tmp_path: Path, steps: Callable, lines):
    curves = []
    for graphs in (False, True):
        config = steps(3, cuda_graphs=graphs, drift_weight=1.0)
        fit(nano_pipeline(), PuppetSource(64, 64), config, tmp_path / str(graphs))
        curves.append([line["loss"] for line in lines(tmp_path / str(graphs))])
    assert torch.tensor(curves[1]).allclose(torch.tensor(curves[0]), rtol=1e-3)
