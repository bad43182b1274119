"""ControlNets, VAE and whole denoising loops against the released code."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from einops import rearrange
from xdyna_model.checkpoints import controlnet_config, convert_controlnet, convert_unet, unet_config
from xdyna_model.conditions import Conditions
from xdyna_model.reference_encoding import EncodedReference
from xdyna_model.sampling import blur, initial_latents, released_scheduler
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.unet import XDynaUNet

GROUPS = {"norm_num_groups": 8}


def controlnet(oracle, name):
    weights = oracle(name).weights
    net = ControlNetModel(**controlnet_config(weights) | GROUPS)
    net.load_state_dict(convert_controlnet(weights), strict=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae(oracle):
    data = oracle("vae")
    vae = AutoencoderKL(**data.facts["ctor"])
    vae.load_state_dict(data.weights, strict=True)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline(oracle, vae):
    weights = oracle("unet").weights
    unet = XDynaUNet(**unet_config(weights) | GROUPS)
    unet.load_state_dict(convert_unet(weights), strict=True)
    pipeline = tiny_pipeline()
    pipeline.register_modules(
        vae=vae,
        unet=unet.eval().requires_grad_(False),
        controlnet=controlnet(oracle, "controlnet_pose"),
        controlnet_face=controlnet(oracle, "controlnet_face"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", ["controlnet_pose", "controlnet_face"])
@pytest.mark.parametrize(("scale", "mid"), [(1.0, "out.mid"), (0.7, "out.mid_scale0.7")])
def test_controlnet(oracle, name, scale, mid):
    data = oracle(name)
    down, middle = controlnet(oracle, name)(
        data["in.sample"],
        data.facts["timestep"],
        data["in.encoder_hidden_states"],
        data["in.controlnet_cond"],
        conditioning_scale=scale,
        return_dict=False,
    )
    torch.testing.assert_close(middle, data[mid], rtol=0, atol=2e-5)
    if scale == 1.0:
        for i, residual in enumerate(down):
            torch.testing.assert_close(residual, data[f"out.down.{i}"], rtol=0, atol=2e-5)


def test_vae(oracle, vae):
    data = oracle("vae")
    posterior = vae.encode(data["in.image"]).latent_dist
    torch.testing.assert_close(posterior.mean, data["out.mean"], rtol=0, atol=2e-5)
    torch.testing.assert_close(posterior.logvar, data["out.logvar"], rtol=0, atol=2e-5)
    torch.testing.assert_close(vae.decode(data["in.latent"]).sample, data["out.decoded"], rtol=0, atol=2e-5)


LOOPS = ["pipeline_both_4f", "pipeline_windows_10f"]


@pytest.mark.parametrize("name", LOOPS)
def test_initial_latents(oracle, name):
    data, scheduler = oracle(name), released_scheduler()
    reference = data["in.ref_latents"]
    torch.testing.assert_close(blur(reference[:, :, 0]), data["downgrade.blurred_frame"], rtol=0, atol=2e-5)
    scheduler.set_timesteps(data.facts["num_inference_steps"])
    # The recording draws a mask value and noise for frame 0 too, and then does not use them.
    mask, noise = data["downgrade.mask"][:, :, 1:].float(), data["noise"][:, :, 1:]
    start = initial_latents(reference, mask, noise, scheduler, scheduler.timesteps[0])
    torch.testing.assert_close(start, data["latents.initial_frames"], rtol=0, atol=2e-5)


def given(data):
    encoded = EncodedReference(
        latent=data["in.ref_latents"],
        text=torch.cat([data["in.text_uncond"], data["in.text_cond"]]),
        image_tokens=torch.cat([data["in.image_uncond"], data["in.image_cond"]]),
    )
    # The released code stretches a clip's maps to [0, 1]; these were recorded with a maximum of 199.
    maps = (data[f"in.{name}_u8"].numpy() for name in ("pose", "face_local", "face_global"))
    return encoded, Conditions(*(pictures.astype(np.float32) / pictures.max() for pictures in maps))


@pytest.mark.parametrize("name", LOOPS)
def test_denoising_loop(oracle, pipeline, name):
    data = oracle(name)
    encoded, conditions = given(data)
    steps = []
    final = pipeline.denoise(
        encoded,
        conditions,
        num_inference_steps=data.facts["num_inference_steps"],
        guidance_scale=data.facts["guidance_scale"],
        latents=data["latents.initial_frames"],
        schedule=lambda step: data.facts["recorded"]["contexts"][step],
        callback_on_step_end=lambda _, step, timestep, values: steps.append((int(timestep), values["latents"])),
    )
    assert [timestep for timestep, _ in steps] == data.facts["recorded"]["timesteps"]
    for step, (_, latents) in enumerate(steps):
        torch.testing.assert_close(latents, data[f"step{step}.latents"], rtol=0, atol=5e-4)
    torch.testing.assert_close(final, data["out.final_latents"], rtol=0, atol=5e-4)
    frames = rearrange(pipeline.decode(final[:, :, :2], "pt"), "b f c h w -> b c f h w")
    torch.testing.assert_close(frames, data["out.video_first2frames"], rtol=0, atol=5e-4)


@pytest.mark.parametrize("mistake", ["swapped face maps", "scaled_linear betas", "no face"])
def test_the_loop_notices(oracle, pipeline, mistake):
    """One step with a mistake must leave the recording by far more than the tolerance."""
    data = oracle("pipeline_both_4f")
    encoded, conditions = given(data)
    scheduler = pipeline.scheduler
    if mistake == "swapped face maps":
        conditions = Conditions(conditions.pose, conditions.face_global, conditions.face_local)
    elif mistake == "no face":
        conditions = Conditions(conditions.pose, conditions.face_local * 0, conditions.face_global * 0)
    else:
        scheduler = scheduler.from_config({**scheduler.config, "beta_schedule": "scaled_linear"})
    correct, pipeline.scheduler = pipeline.scheduler, scheduler
    seen = []
    try:
        pipeline.denoise(
            encoded,
            conditions,
            num_inference_steps=data.facts["num_inference_steps"],
            guidance_scale=data.facts["guidance_scale"],
            latents=data["latents.initial_frames"],
            schedule=lambda step: data.facts["recorded"]["contexts"][step],
            callback_on_step_end=lambda _, step, timestep, values: seen.append(values["latents"]),
        )
    finally:
        pipeline.scheduler = correct
    assert (seen[0] - data["step0.latents"]).abs().max() > 5e-3
