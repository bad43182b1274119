"""The pipeline as its users call it."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler
from PIL import Image
from xdyna_model.conditions import Conditions
from xdyna_model.tiny import tiny_pipeline

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (96, 80, 3), dtype=np.uint8)


def maps(frames, height=64, width=64):
    pictures = RANDOM.integers(0, 256, (3, frames, height, width, 3), dtype=np.uint8)
    return Conditions(*pictures)


CONDITIONS = maps(3)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, conditions=CONDITIONS, seed=0, reference=PICTURE, **options):
    options = {"num_inference_steps": 2, "output_type": "np"} | options
    return pipeline(reference, conditions, generator=torch.Generator().manual_seed(seed), **options).frames


def test_seed_decides(pipeline):
    state = torch.get_rng_state()
    first = run(pipeline, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator
    torch.manual_seed(123)
    assert np.array_equal(first, run(pipeline, seed=1))
    assert not np.array_equal(first, run(pipeline, seed=2))


def test_frames_start_from_one_noise_only_where_a_model_says_so(pipeline):
    pipeline.scheduler.set_timesteps(2)
    encoded = pipeline.encode(PICTURE, 64, 64, guidance=False, generator=torch.Generator().manual_seed(0))
    own = pipeline.prepare_latents(encoded, 3, torch.Generator().manual_seed(0))
    assert not torch.equal(own[:, :, 0], own[:, :, 1])
    pipeline.register_to_config(shared_noise=True)
    shared = pipeline.prepare_latents(encoded, 3, torch.Generator().manual_seed(0))
    pipeline.register_to_config(shared_noise=False)
    assert shared.shape == own.shape
    assert torch.equal(shared[:, :, :1].expand_as(shared), shared)


def test_building_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    tiny_pipeline()
    assert torch.equal(torch.get_rng_state(), state)


def test_everything_given_matters(pipeline):
    """A result that ignores one of its inputs would pass for noise with random weights."""
    first = run(pipeline)
    blank = np.zeros_like(CONDITIONS.pose)
    for changed in (
        {"reference": PICTURE[::-1]},
        {"prompt": "a dancer"},
        {"negative_prompt": "a tree"},
        {"guidance_scale": 3.0},
        {"conditions": Conditions(blank, CONDITIONS.face_local, CONDITIONS.face_global)},
        {"conditions": Conditions(CONDITIONS.pose, blank, CONDITIONS.face_global)},
        {"conditions": Conditions(CONDITIONS.pose, CONDITIONS.face_local, blank)},
    ):
        assert not np.array_equal(first, run(pipeline, **changed)), changed.keys()


@pytest.mark.parametrize(("scale", "batch"), [(7.5, 2), (1.0, 1), (0.5, 1), (0.0, 1)])
def test_no_guidance_costs_one_batch(pipeline, scale, batch):
    seen = []
    hooks = [
        pipeline.unet.conv_in.register_forward_hook(lambda m, args, out: seen.append(len(args[0]) / 4)),
        pipeline.controlnet.conv_in.register_forward_hook(lambda m, args, out: seen.append(len(args[0]) / 3)),
    ]
    frames = run(pipeline, guidance_scale=scale, num_inference_steps=1)
    for hook in hooks:
        hook.remove()
    assert seen == [batch, batch]
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("wrap", [True, False])
def test_long_clips(pipeline, wrap):
    conditions = maps(9)
    frames = run(pipeline, conditions, window_size=4, window_overlap=1, wrap=wrap)
    assert frames.shape == (1, 9, 64, 64, 3)
    assert np.isfinite(frames).all()
    assert np.array_equal(frames, run(pipeline, conditions, window_size=4, window_overlap=1, wrap=wrap))


def test_one_frame(pipeline):
    assert run(pipeline, maps(1)).shape == (1, 1, 64, 64, 3)


def test_sides_that_are_no_multiple_of_64(pipeline):
    assert run(pipeline, maps(2, 72, 104)).shape == (1, 2, 72, 104, 3)


def test_output_types(pipeline):
    array = run(pipeline)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1
    tensor = run(pipeline, output_type="pt")
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    [pictures] = run(pipeline, output_type="pil")
    assert np.abs(np.asarray(pictures[1]) / 255 - array[0, 1]).max() <= 0.5001 / 255
    assert run(pipeline, output_type="latent").shape == (1, 4, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    as_tuple = pipeline(
        PICTURE, CONDITIONS, num_inference_steps=2, generator=generator, output_type="np", return_dict=False
    )
    assert np.array_equal(as_tuple[0], array)


def test_pictures_of_any_kind(pipeline):
    opaque = Image.fromarray(PICTURE).convert("RGBA")
    assert np.array_equal(run(pipeline, reference=opaque), run(pipeline))


def test_pictures_as_they_are_meant_to_be_seen(pipeline):
    turned = Image.fromarray(np.rot90(PICTURE).copy())
    turned.getexif()[274] = 6  # "turn me a quarter to the right", as a phone held upright says
    assert np.array_equal(run(pipeline, reference=turned), run(pipeline))
    clear = Image.fromarray(np.dstack([PICTURE, np.zeros((96, 80), np.uint8)]))
    assert np.array_equal(run(pipeline, reference=clear), run(pipeline, reference=np.full_like(PICTURE, 255)))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (PICTURE[:64, :64] / 255, r"reference is float64 \[64, 64, 3\], expected"),
        (PICTURE[..., 0], r"reference is uint8 \[96, 80\], expected"),
        (np.dstack([PICTURE, PICTURE[..., :1]]), r"reference is uint8 \[96, 80, 4\], expected"),
        (torch.from_numpy(PICTURE), r"reference is torch.uint8 \[96, 80, 3\], expected"),
        ([Image.fromarray(PICTURE)], "reference is a list, expected one PIL picture or uint8 array"),
        (None, "reference is a NoneType, expected one PIL picture or uint8 array"),
    ],
)
def test_what_is_no_picture_is_named(pipeline, reference, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, reference=reference)


@pytest.mark.parametrize("height", [1, 3])
def test_arrays_no_higher_than_they_have_channels(pipeline, height):
    seen = []
    hook = pipeline.image_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    low = RANDOM.integers(0, 256, (height, 80, 3), dtype=np.uint8)
    pipeline.encode(low, 64, 64, guidance=False, generator=torch.Generator().manual_seed(0))
    hook.remove()
    assert torch.equal(seen[0], pipeline.feature_extractor(Image.fromarray(low), return_tensors="pt").pixel_values)


def test_parts_take_the_models_own_settings(pipeline):
    own = {"default_steps": pipeline.default_steps, "default_guidance": pipeline.default_guidance}
    pipeline.register_to_config(default_steps=3, default_guidance=1.0)
    generator = torch.Generator().manual_seed(0)
    encoded = pipeline.encode(PICTURE, 64, 64, generator=generator)
    latents = pipeline.denoise(encoded, CONDITIONS, generator=generator)
    whole = run(pipeline, num_inference_steps=3, guidance_scale=1.0)
    pipeline.register_to_config(**own)
    assert len(encoded.text) == 1
    assert np.array_equal(pipeline.decode(latents, "np"), whole)


def test_frames_are_decoded_when_they_are_asked_for(pipeline, monkeypatch):
    """A long clip would not fit a GPU."""
    decoded, decode = [], pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda latent: decoded.append(latent) or decode(latent))
    frames = pipeline.iter_decoded(run(pipeline, output_type="latent"))
    assert next(frames).shape == (3, 64, 64)
    assert len(decoded) == 1
    assert len(list(frames)) == 2


def test_a_scheduler_that_scales_leaves_the_reference_alone(pipeline, monkeypatch):
    seen, forward = [], pipeline.unet.forward
    monkeypatch.setattr(pipeline.scheduler, "scale_model_input", lambda sample, timestep: 0 * sample)
    monkeypatch.setattr(pipeline.unet, "forward", lambda sample, *rest: seen.append(sample) or forward(sample, *rest))
    encoded = pipeline.encode(PICTURE, 64, 64, generator=torch.Generator().manual_seed(0))
    run(pipeline)
    assert torch.equal(seen[0][:, :, :1], encoded.latent.expand_as(seen[0][:, :, :1]))
    assert not seen[0][:, :, 1:].any()


def test_parts_called_alone_make_the_whole(pipeline):
    generator = torch.Generator().manual_seed(0)
    encoded = pipeline.encode(PICTURE, 64, 64, generator=generator)
    latents = pipeline.denoise(encoded, CONDITIONS, num_inference_steps=2, generator=generator)
    assert np.array_equal(pipeline.decode(latents, "np"), run(pipeline))


def test_latents_can_be_given(pipeline):
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    first = run(pipeline, latents=latents)
    assert np.array_equal(first, run(pipeline, latents=latents))
    assert np.array_equal(first, run(pipeline, latents=latents.double()))  # in the pipeline's dtype all the same
    assert not np.array_equal(first, run(pipeline))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_starts_from_the_same_noise(dtype):
    exact, half = tiny_pipeline(), tiny_pipeline().to(dtype=dtype)
    half.set_progress_bar_config(disable=True)
    starts = []
    for pipeline in (exact, half):
        generator = torch.Generator().manual_seed(0)
        encoded = pipeline.encode(PICTURE, 64, 64, generator=generator)
        pipeline.scheduler.set_timesteps(2)
        starts.append(pipeline.prepare_latents(encoded, 3, generator).float())
    assert (starts[0] - starts[1]).abs().max() < 0.05 * starts[0].abs().max()
    assert np.isfinite(run(half)).all()


def test_first_timestep_of_the_released_schedule(pipeline):
    pipeline.scheduler.set_timesteps(25)
    assert pipeline.scheduler.timesteps[0] == 961


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": maps(2, 68, 64)}, "size is 64x68, expected multiples of 8"),
        ({"conditions": maps(2, 32, 64)}, "of at least 64 pixels"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2.0}, "num_inference_steps is 2.0, expected a whole number"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prompt": ["a dancer"]}, "one string each"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000, expected a whole number from 1 to 999"),
        ({"window_size": 25}, "window_size is 25, expected a whole number from 1 to 24"),
        ({"window_size": 2.0, "window_overlap": 1}, "window_size is 2.0, expected a whole number"),
        ({"window_overlap": 1.0}, "window_overlap is 1.0, expected a whole number"),
        ({"window_overlap": 16}, "overlap is 16"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"has \['noise'\], there are only latents"),
        ({"output_type": "mp4"}, "output_type is 'mp4'"),
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, r"latents are \[1, 4, 2, 8, 8\], expected \[1, 4, 3, 8, 8\]"),
    ],
)
def test_what_does_not_fit_is_named(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, **options)


def test_parts_called_alone_name_what_does_not_fit(pipeline):
    encoded = pipeline.encode(PICTURE, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="size is 65x64, expected multiples of 8"):
        pipeline.encode(PICTURE, 64, 65)
    with pytest.raises(ValueError, match="generator is a list, expected one"):
        pipeline.encode(PICTURE, 64, 64, generator=[torch.Generator()])
    with pytest.raises(ValueError, match="conditions are 64x72, but the reference was encoded at 64x64"):
        pipeline.denoise(encoded, maps(3, 72, 64), num_inference_steps=2)
    for name, number in (("num_inference_steps", 0), ("num_inference_steps", True), ("window_size", 0)):
        with pytest.raises(ValueError, match=f"{name} is {number}"):
            pipeline.denoise(encoded, CONDITIONS, **{name: number})
    windows = [[[0, 1, 2]], [[0], [2]]]
    with pytest.raises(ValueError, match=r"no window of step 1 has the frames \[1\]"):
        pipeline.denoise(encoded, CONDITIONS, num_inference_steps=2, schedule=windows.__getitem__)
    for output_type in ("gif", "latent"):
        with pytest.raises(ValueError, match=f"output_type is '{output_type}', expected one of pil, np, pt"):
            pipeline.decode(encoded.latent, output_type)


@pytest.mark.parametrize("kind", [DDPMScheduler, LCMScheduler])
def test_a_seed_decides_what_a_scheduler_draws(pipeline, monkeypatch, kind):
    monkeypatch.setattr(pipeline, "scheduler", kind.from_config(pipeline.scheduler.config))
    state = torch.get_rng_state()
    first = run(pipeline)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert np.array_equal(first, run(pipeline))
