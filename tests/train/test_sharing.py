"""Weights shared out over two processes train as those of one, and the run may change between the two ways."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from xdyna_model.errors import InputError
from xdyna_model.model_folder import load_pipeline
from xdyna_train import train
from xdyna_train.config import Config
from xdyna_train.train import check, fit

Steps = Callable[..., Config]


def checkpoint(out: Path, step: int) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shared_weights_train_as_those_of_one_process(
    accumulate: int,
    tmp_path: Path,
    alone: Path,
    same_curve: Callable,
    run_two: Callable,
    new_pipeline: Callable,
    waves: Any,
    steps: Steps,
) -> None:
    config = steps(4, learning_rate=1e-4, accumulate=accumulate, shard=True)
    assert run_two(lambda: fit(new_pipeline(), waves, config, tmp_path / "run")) == [0, 0]
    same_curve(tmp_path / "run", alone)
    ours, theirs = (checkpoint(out, 4) for out in (tmp_path / "run", alone))
    assert ours["frozen"] == theirs["frozen"]
    for kind in ("weights", "optimizer", "ema"):
        torch.testing.assert_close(_tensors(ours[kind]), _tensors(theirs[kind]), rtol=0, atol=1e-4)
    models = [load_pipeline(out / "model") for out in (tmp_path / "run", alone)]
    for name in ("unet", "controlnet", "controlnet_face", "image_projection"):
        ours, theirs = (getattr(model, name).state_dict() for model in models)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def _tensors(tree: Any) -> list[torch.Tensor]:
    """All tensors of dicts and lists, in their order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def test_each_process_holds_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_two: Callable, new_pipeline: Callable, waves: Any, steps: Steps
) -> None:
    keep = train._Run._keep

    def held(run: Any, optimizer: Any, step: int, last: bool) -> None:
        state = [x for of_one in optimizer.optimizer.state.values() for x in of_one.values() if x.ndim]
        for tensors in (list(run.trainee.parameters()), state, run.averages._begun.shadow_params):
            assert all(isinstance(x, DTensor) for x in tensors)
            mine, all_of_it = sum(x.to_local().numel() for x in tensors), sum(x.numel() for x in tensors)
            assert 0.4 * all_of_it < mine < 0.6 * all_of_it
        keep(run, optimizer, step, last)

    monkeypatch.setattr(train._Run, "_keep", held)
    config = steps(1, shard=True)
    assert run_two(lambda: fit(new_pipeline(), waves, config, tmp_path / "run")) == [0, 0]


@pytest.mark.parametrize("first", ["shared", "alone"])
def test_a_run_may_go_on_the_other_way(
    first: str,
    tmp_path: Path,
    uninterrupted: Path,
    lines: Callable,
    run_two: Callable,
    new_pipeline: Callable,
    waves: Any,
    config: Config,
) -> None:
    """Through both stages, and from a step within the second."""
    out, shared = tmp_path / "run", replace(config, shard=True, checkpoint_every=5)
    if first == "shared":
        assert run_two(lambda: fit(new_pipeline(), waves, shared, out)) == [0, 0]
        shutil.rmtree(out / "checkpoints" / "step-00000007")
        fit(new_pipeline(), waves, config, out, resume=True)
    else:
        fit(new_pipeline(), waves, replace(config, checkpoint_every=5), out)
        shutil.rmtree(out / "checkpoints" / "step-00000007")
        assert run_two(lambda: fit(new_pipeline(), waves, shared, out, resume=True)) == [0, 0]
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in lines(uninterrupted)]
        assert [line[name] for line in lines(out)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("processes", "precision", "message"),
    [
        (1, "no", "one process has nobody to share the weights with"),
        (2, "fp16", "weights that are shared out train in bf16"),
    ],
)
def test_what_cannot_be_shared_is_refused(processes: int, precision: Any, message: str, steps: Steps) -> None:
    with pytest.raises(InputError, match=message):
        check(steps(1, shard=True, precision=precision), processes)
