"""Weights shared out over two processes train as those of one, and the run may change between the two ways."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from xdyna_model.errors import InputError
from xdyna_model.model_folder import load_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_train.config import Config
from xdyna_train.gathering import gathered
from xdyna_train.train import check, fit
from xdyna_train.trainee import Trainee, train_only
from xdyna_train.training_run import Run

Steps = Callable[..., Config]


@pytest.fixture(autouse=True)
def safe_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of these tests end with an error where they gather by DTensor's own way: see `gathering`. What it does
    to memory shows once in a million gathers."""

    def unsafe(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("gathered by ALLGATHER_COALESCED")

    monkeypatch.setattr(_functional_collectives, "all_gather_tensor", unsafe)


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
    alike(ours, theirs, new_pipeline())
    model = load_pipeline(tmp_path / "run" / "model")
    kept = train_only(Trainee(model), config.stages[0].train)
    assert all(torch.equal(x, y) for x, y in zip(kept, ours["ema"]["shadow_params"], strict=True))


def alike(ours: dict[str, Any], theirs: dict[str, Any], start: XDynaPipeline) -> None:
    """Asserts that two checkpoints of runs from `start` hold the same, but for rounding: AdamW makes whole steps of it
    where a gradient is next to nothing."""
    begun = Trainee(start).state_dict().values()
    moved = [[x - y for x, y in zip(state["weights"].values(), begun, strict=True)] for state in (ours, theirs)]
    assert _apart(*moved) < 0.05
    assert _apart(*(state["ema"]["shadow_params"] for state in (ours, theirs))) < 1e-5
    for name in ("exp_avg", "exp_avg_sq"):
        held = [[x[name] for x in state["optimizer"]["state"].values()] for state in (ours, theirs)]
        assert _apart(*held) < 1e-3


def _apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The distance of two vectors, given in pieces, in parts of the other's length."""

    def length(tensors: list[torch.Tensor]) -> float:
        return float(sum(x.double().square().sum() for x in tensors)) ** 0.5

    return length([x - y for x, y in zip(ours, theirs, strict=True)]) / length(theirs)


def test_each_process_holds_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_two: Callable, new_pipeline: Callable, waves: Any, steps: Steps
) -> None:
    keep = Run.keep

    def held(run: Any, optimizer: Any, step: int, last: bool) -> None:
        state = [x for of_one in optimizer.optimizer.state.values() for x in of_one.values() if x.ndim]
        for tensors in (list(run.trainee.parameters()), state, run.averages._begun.shadow_params):
            assert all(isinstance(x, DTensor) for x in tensors)
            mine, all_of_it = sum(x.to_local().numel() for x in tensors), sum(x.numel() for x in tensors)
            assert 0.4 * all_of_it < mine < 0.6 * all_of_it
        keep(run, optimizer, step, last)

    monkeypatch.setattr(Run, "keep", held)
    config = steps(1, shard=True)
    assert run_two(lambda: fit(new_pipeline(), waves, config, tmp_path / "run")) == [0, 0]


def test_what_was_shared_out_is_whole_again(run_two: Callable) -> None:
    """Also where rows are not as many for one process as for the other, or none."""

    def there_and_back() -> None:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (2,))
        for rows in range(1, 6):
            value = torch.arange(rows * 3.0).reshape(rows, 3)
            full = gathered(distribute_tensor(value, mesh, [Shard(0)]))
            assert torch.equal(full, value)
            assert full.untyped_storage().nbytes() == value.nbytes
        assert gathered(DTensor.from_local(torch.ones(()), mesh, [Partial()])) == 2

    assert run_two(there_and_back) == [0, 0]


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
    alike(checkpoint(out, 7), checkpoint(uninterrupted, 7), new_pipeline())


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
