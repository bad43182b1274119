"""What is called after each step of denoising: it sees the latents, may change them, and knows how many there are."""

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from xdyna_model.conditions import Conditions
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.tiny import tiny_pipeline

PICTURE = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, **options):
    options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)} | options
    return pipeline(PICTURE, Conditions.blank(3, 64, 64), **options).frames


def test_callback_sees_and_changes_each_step(pipeline):
    seen = []

    def watch(owner, step, timestep, values):
        seen.append((step, int(timestep), values["latents"].clone()))

    final = run(pipeline, callback_on_step_end=watch, output_type="latent", num_inference_steps=3)
    assert isinstance(pipeline, XDynaPipeline)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert [timestep for _, timestep, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert torch.equal(seen[-1][2], final)
    zeroed = run(
        pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 3, 8, 8)}, output_type="latent"
    )
    assert not zeroed.any()
    without = []
    run(pipeline, callback_on_step_end=lambda *given: without.append(given[3]), callback_on_step_end_tensor_inputs=[])
    assert without == [{}, {}]


def test_latents_of_another_shape_are_refused(pipeline):
    def cut(_owner, _step, _timestep, tensors):
        return {"latents": tensors["latents"][:, :, :2]}

    with pytest.raises(ValueError, match=r"the callback's latents are \[1, 4, 2, 8, 8\], expected \[1, 4, 3, 8, 8\]"):
        run(pipeline, callback_on_step_end=cut)


class HalfWay(PipelineCallback):
    """Makes zeros of the latents at a share of the steps."""

    @property
    def tensor_inputs(self) -> list[str]:
        return ["latents"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
            callback_kwargs["latents"] = torch.zeros_like(callback_kwargs["latents"])
        return callback_kwargs


@pytest.mark.parametrize("several", [False, True])
def test_diffusers_callbacks_are_told_what_they_ask_for(pipeline, several):
    callback = HalfWay(cutoff_step_ratio=0.5)
    seen = []

    def kept(owner, step, timestep, tensors):
        callback(owner, step, timestep, tensors)
        seen.append((owner.num_timesteps, bool(tensors["latents"].any())))
        return tensors

    run(pipeline, callback_on_step_end=kept, num_inference_steps=3)
    assert seen == [(3, True), (3, False), (3, True)]
    given = MultiPipelineCallbacks([callback]) if several else callback
    cut = run(pipeline, callback_on_step_end=given, callback_on_step_end_tensor_inputs=[], output_type="latent")
    assert not np.array_equal(cut, run(pipeline, output_type="latent"))


def test_diffusers_callbacks_that_ask_for_more_are_refused(pipeline):
    with pytest.raises(ValueError, match=r"has \['prompt_embeds'\], there are only latents"):
        run(pipeline, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
