"""Other schedulers of diffusers in the place of the model's own."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from xdyna_model.animate import compute
from xdyna_model.conditions import Conditions
from xdyna_model.driving import Motion
from xdyna_model.job import Job
from xdyna_model.sampling import released_scheduler
from xdyna_model.tiny import tiny_pipeline

# Of diffusers, with a newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

KINDS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
KINDS += ["HeunDiscreteScheduler", "LCMScheduler", "PNDMScheduler", "DEISMultistepScheduler", "DDPMScheduler"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_put_in_the_place_of_the_models_is_the_same_before_and_after_saving(kind: str, tmp_path: Path) -> None:
    released_scheduler().save_pretrained(tmp_path)
    reloaded = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    fresh, saved = (getattr(diffusers, kind).from_config(s.config) for s in (released_scheduler(), reloaded))
    for scheduler in (fresh, saved):
        scheduler.set_timesteps(25)
    assert torch.equal(fresh.timesteps, saved.timesteps)
    for name in ("timestep_spacing", "prediction_type", "set_alpha_to_one", "beta_schedule", "steps_offset"):
        assert fresh.config.get(name) == saved.config.get(name)


@pytest.mark.parametrize(("kind", "calls"), [("DDIMScheduler", 4), ("HeunDiscreteScheduler", 7), ("PNDMScheduler", 13)])
def test_progress_counts_what_the_scheduler_asks_for(kind: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have the denoiser called several times a step."""
    pipeline, totals, bars = tiny_pipeline(), [], []
    monkeypatch.setattr(pipeline, "scheduler", getattr(diffusers, kind).from_config(pipeline.scheduler.config))
    progress_bar = pipeline.progress_bar
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline, "progress_bar", lambda total: totals.append(total) or progress_bar(total=total))

    def stage(name: str, total: int | None) -> Callable[[], object]:
        bars.append([name, total, 0])

        def advance() -> None:
            bars[-1][2] += 1

        return advance

    photo, blank = np.zeros((64, 64, 3), np.uint8), Conditions.blank(1, 64, 64)
    compute(pipeline, photo, Motion(blank, None, 8, None), Job(steps=4, guidance=1.0), stage)
    assert totals == [calls]
    assert bars == [["animating", calls, calls]]
