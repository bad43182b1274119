"""The nano model: its two parts of its own, its start, and the weights that ship."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import nn
from xdyna_model import Conditions, job
from xdyna_model.driving import MAPS
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.images import fit
from xdyna_model.model_folder import load_pipeline
from xdyna_model.motion import MotionModule
from xdyna_model.nano import CPU_SIZE, GPU_SIZE, nano_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.positional_encoding import (
    DRIFTS,
    NUM_POSITION_CHANNELS,
    NUM_TOLD,
    SPEEDS,
    drift_waves,
    moment_channels,
    place_channels,
    still_rows,
    told_channels,
    wave_channels,
)
from xdyna_model.positional_unet import (
    INPUT_AMPLITUDE,
    DriftingAdapter,
    PositionalAdapter,
    PositionalUNet,
    TellingLayout,
)
from xdyna_model.unet import XDynaUNet
from xdyna_model.video import read_frames

FRAMES = 4


def test_a_fresh_interpreter_loads_the_pipeline_by_its_class() -> None:
    code = f"from xdyna_model import XDynaPipeline; XDynaPipeline.from_pretrained({str(job.NANO)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def untrained():
    return nano_pipeline()


def test_parts_make_another_pipeline(untrained):
    again = XDynaPipeline.from_pipe(untrained)
    assert again.unet is untrained.unet
    assert again.config["shared_noise"] == untrained.config["shared_noise"]


def test_pixel_codec_loses_nothing():
    codec, pixels = PixelCodec(4), torch.rand(2, 3, 16, 24) * 2 - 1
    latents = codec.encode(pixels).latent_dist
    assert latents.mean.shape == (2, 48, 4, 6)
    assert torch.equal(codec.decode(latents.mode()).sample, pixels)
    assert (latents.sample() - latents.mean).abs().max() < 1e-5
    patch = latents.mean[0, :, 1, 2].reshape(3, 4, 4)  # a latent holds its own patch, as pixel_unshuffle orders it
    assert torch.equal(patch, pixels[0, :, 4:8, 8:12])


def test_every_place_is_told_from_every_other():
    assert _least_distance(place_channels(28, 16).flatten(1)) > 0.3


def test_every_moment_of_a_window_is_told_from_every_other():
    moments = moment_channels(17)  # the reference among them
    assert len(moments) == NUM_POSITION_CHANNELS - 1 - len(place_channels(28, 16))
    assert _least_distance(moments[:, 1:]) > 0.3


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_is_that_of_the_place_from_which_it_has_come(axis):
    """At 0.012 of 25 latents a frame: after ten frames, it is the wave of three latents before."""
    size = [5, 5]
    size[axis] = 25
    waves = wave_channels(11, *size).unflatten(0, (len(SPEEDS), 2, -1))[SPEEDS.index(0.012), axis]
    before, after = (waves[:, m].movedim(1 + axis, 1) for m in (0, 10))
    torch.testing.assert_close(after[:, 3:], before[:, :-3])
    assert (after - before).abs().max() > 0.05


def test_a_wave_of_the_reference_is_that_of_its_place():
    first = wave_channels(2, 28, 16)[:, 0].unflatten(0, (len(SPEEDS), -1))
    assert torch.equal(first, first[:1].expand_as(first))


def _least_distance(columns: torch.Tensor) -> float:
    return float((torch.cdist(columns.T, columns.T) + 1e9 * torch.eye(columns.shape[1])).min())


@pytest.mark.parametrize(("right", "down"), DRIFTS)
def test_what_drifts_finds_the_place_from_which_it_has_come(right, down):
    """On 50 x 50 latents, after two frames: up to two latents on."""
    told = told_channels(3, 50, 50)
    come_from = (drift_waves(told)[2, :, DRIFTS.index((right, down))] @ (told[0] @ still_rows().T).T).argmax(-1)
    come_from = come_from.view(50, 50)
    rows, columns = come_from // 50, come_from % 50
    inner, here = slice(2, 48), torch.arange(50.0)
    far_down, far_right = (
        (found - came)[inner, inner].abs().max()
        for found, came in ((rows, here[:, None] - 2 * 50 * down), (columns, here - 2 * 50 * right))
    )
    assert max(far_down, far_right) <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(28, 16), (7, 5), (5, 9)])
def test_each_level_is_told_its_own_places(size):
    layout = TellingLayout(num_frames=2)
    layout.begin(size)
    for _ in range(3):
        assert torch.equal(layout.told(size[0] * size[1], torch.device("cpu")), told_channels(2, *size))
        size = tuple((n + 1) // 2 for n in size)
    layout.begin((3, 4))
    assert layout.told(12, torch.device("cpu")).shape == (2, 12, NUM_TOLD)


def _attention(adapter: type[DynamicsAdapter], layout) -> Attention:
    torch.manual_seed(0)
    attention = Attention(query_dim=32, heads=2, dim_head=16)
    attention.set_processor(adapter(attention, layout))
    nn.init.normal_(attention.processor.to_out_ref.weight)
    return attention


def test_queries_and_keys_are_told_and_values_are_not():
    layout = TellingLayout(num_frames=3)
    layout.begin((4, 2))
    told, plain = _attention(PositionalAdapter, layout), _attention(DynamicsAdapter, layout)
    plain.load_state_dict({name: weight for name, weight in told.state_dict().items() if name in plain.state_dict()})
    x = torch.randn(2 * 3, 8, 32)
    place = told.processor
    assert isinstance(place, PositionalAdapter)
    places = torch.cat([told_channels(3, 4, 2)] * 2)
    layers = [plain.to_q, plain.to_k, plain.to_v, plain.processor.to_q_ref]
    q, k, v, q_ref = plain.processor._project(x, layers)
    by_hand = (q + place.to_q_place(places), k + place.to_k_place(places), v, q_ref + place.to_q_ref_place(places))
    for ours, expected in zip(told.processor._project(x, layers), by_hand, strict=True):
        torch.testing.assert_close(ours, expected)
    with torch.no_grad():
        assert not torch.allclose(told(x), plain(x), atol=1e-3)
        for layer in (place.to_q_place, place.to_k_place, place.to_q_ref_place):
            layer.weight.zero_()
        torch.testing.assert_close(told(x), plain(x))


@pytest.mark.parametrize("num_told", [NUM_POSITION_CHANNELS, NUM_TOLD])
def test_positional_unet_is_the_denoiser_with_more_input(untrained, num_told):
    unet = PositionalUNet.from_config({**untrained.unet.config, "in_channels": 48 + num_told}).eval()
    b, f, h, w = 2, 3, 8, 4
    sample, text, image = torch.randn(b, 48, f, h, w), torch.randn(b, 8, 32), torch.randn(b, 16, 32)
    told = INPUT_AMPLITUDE * told_channels(f, h, w)[..., :num_told].unflatten(1, (h, w)).permute(3, 0, 1, 2)
    with torch.no_grad():
        ours = unet(sample, torch.tensor([3, 700]), text, image).sample
        unet.layout.begin((h, w))
        stacked = torch.cat([sample, told.expand(b, -1, -1, -1, -1)], 1)
        by_hand = XDynaUNet.forward(unet, stacked, torch.tensor([3, 700]), text, image).sample
    assert torch.equal(ours, by_hand)


def test_a_denoiser_that_was_told_less_is_refused(untrained):
    with pytest.raises(ValueError, match="in_channels leaves 25 channels beside the latents, expected 37 or 181"):
        PositionalUNet.from_config({**untrained.unet.config, "in_channels": 73})


def test_attention_over_time_stays_soft_however_large_its_weights(untrained):
    """Scores of a million, which training came to, leave a frame one other to look at, and queries no gradient."""
    clip = torch.randn(5, 32, 4, 2, generator=torch.Generator().manual_seed(0))

    def change(unet: XDynaUNet) -> float:
        """What weights a thousand times as large make of the output's difference."""
        module = next(part for part in unet.modules() if isinstance(part, MotionModule))
        with torch.no_grad():
            before = module(clip, num_frames=5)
            for layer in (part for part in module.modules() if isinstance(part, Attention)):
                layer.get_parameter("to_q.weight").mul_(1000)
                layer.get_parameter("to_k.weight").mul_(1000)
            return float((module(clip, num_frames=5) - before).abs().max())

    assert change(PositionalUNet.from_config(untrained.unet.config).eval()) < 1e-4
    assert change(XDynaUNet.from_config(untrained.unet.config).eval()) > 0.1


def _looks(unet: PositionalUNet, moment: int) -> dict[str, torch.Tensor]:
    """At full noise, in a frame: the token of the best key in the reference, [heads, tokens], of each adapter."""
    looks: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def look(attn: Attention, inputs: tuple) -> None:
            layers = [attn.to_q, attn.to_k, attn.to_v, attn.processor.to_q_ref]
            parts = attn.processor._project(inputs[0], layers)
            _, k, _, q_ref = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
            looks[name] = torch.einsum("nhd,mhd->hnm", q_ref[moment], k[0]).argmax(-1)

        return look

    for name, module in unet.named_modules():
        if isinstance(getattr(module, "processor", None), PositionalAdapter):
            module.register_forward_pre_hook(watch(name))
    sample = torch.randn(1, 48, 1 + moment, 28, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        unet(sample, torch.tensor(999), torch.zeros(1, 8, 32), torch.zeros(1, 16, 32))
    return looks


def _share_near(best: torch.Tensor, shift: tuple[float, float]) -> float:
    """Of the places that have come from inside of the picture, how many look within a latent of there. shift: (right,
    down) in longer sides."""
    height, width = {448: (28, 16), 112: (14, 8), 28: (7, 4)}[len(best)]
    rows = torch.arange(height)[:, None] - height * shift[1]
    columns = torch.arange(width) - height * shift[0]
    row, column = (part.view(height, width) for part in (best // width, best % width))
    near = ((row - rows).abs() <= 1) & ((column - columns).abs() <= 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return float(near[inside].float().mean())


@pytest.mark.parametrize("size", [CPU_SIZE, GPU_SIZE])
def test_untrained_heads_look_at_their_place(size):
    """What noise and content make of queries and keys does not turn them away, nor do guesses."""
    looks = _looks(nano_pipeline(size=size).unet, moment=8)
    assert len(looks) == 10
    assert all(_share_near(best, (0.0, 0.0)) > 0.8 for heads in looks.values() for best in heads)


@pytest.mark.parametrize("size", [CPU_SIZE, GPU_SIZE])
@pytest.mark.parametrize("drift", DRIFTS)
def test_heads_look_where_tokens_guess_that_it_has_come_from(size, drift):
    unet, moment = nano_pipeline(size=size).unet, 8
    drifting = [part for part in unet.modules() if isinstance(part, DriftingAdapter)]
    assert len(drifting) == 2
    for adapter in drifting:
        with torch.no_grad():
            adapter.to_drift.bias.view(-1, len(DRIFTS))[:, DRIFTS.index(drift)] += 100
    shift = moment * drift[0], moment * drift[1]
    looks = {name: heads for name, heads in _looks(unet, moment).items() if name.startswith("up_blocks.2")}
    assert len(looks) == 2
    assert all(_share_near(best, shift) > 0.8 for heads in looks.values() for best in heads)


def test_guesses_move_queries_of_all_frames_but_the_first(untrained):
    (adapter, *_) = (part for part in untrained.unet.modules() if isinstance(part, DriftingAdapter))
    adapter.layout.num_frames = 3
    adapter.layout.begin((28, 16))
    x = torch.randn(3, 448, adapter.to_drift.in_features)
    layers = [nn.Linear(x.shape[-1], x.shape[-1]) for _ in range(4)]
    *told, plain = PositionalAdapter._project(adapter, x, layers)
    *same, drifted = adapter._project(x, layers)
    assert all(torch.equal(a, b) for a, b in zip(told, same, strict=True))
    torch.testing.assert_close(drifted[0], plain[0])
    assert (drifted[1:] - plain[1:]).abs().amax((1, 2)).min() > 0.01


@pytest.mark.parametrize("size", [CPU_SIZE, GPU_SIZE])
def test_either_size_is_small_enough_to_ship(size):
    """In float16, as it would be published, with a MiB for all that is not weights."""
    parts = [part for part in nano_pipeline(size=size).components.values() if isinstance(part, nn.Module)]
    assert sum(2 * weight.numel() for part in parts for weight in part.parameters()) <= 19 * 2**20


def test_shipped_weights_fit_and_are_small():
    files = [path for path in job.NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    pipeline = load_pipeline(job.NANO)  # strict: every tensor is there, fits and is finite
    assert isinstance(pipeline.unet, PositionalUNet)
    assert isinstance(pipeline.vae, PixelCodec)
    assert (pipeline.default_height, pipeline.default_width) == (112, 64)


def test_shipped_model_animates_the_example():
    """What a newcomer sees: the picture's scene and clothes, and a figure that takes up the poses."""
    pipeline = load_pipeline(job.NANO)
    pipeline.set_progress_bar_config(disable=True)
    picture = np.asarray(Image.open(job.EXAMPLE / "reference.png").convert("RGB"))
    maps = {name: read_frames(job.EXAMPLE / f"{name}.mp4", FRAMES, size=(112, 64)).frames for name in MAPS}
    conditions = Conditions(**maps)
    generator = torch.Generator().manual_seed(0)
    frames = np.asarray(pipeline(picture, conditions, generator=generator, output_type="np").frames[0])
    reference = fit(picture, 112, 64) / 255.0
    limbs = (maps["pose"][:, 70:].max(-1) > 40).any(0)  # legs' places in any frame
    top_corners = np.abs(frames - reference)[:, :20, [*range(10), *range(54, 64)]]
    assert top_corners.mean() < 0.08  # 0.05 seen; of 60 other puppet pictures the nearest is 0.09 away, the median 0.26
    assert limbs.any()
    blank = Conditions.blank(FRAMES, 112, 64)
    generator = torch.Generator().manual_seed(0)
    nobody = np.asarray(pipeline(picture, blank, generator=generator, output_type="np").frames[0])
    changed = np.abs(frames - nobody).mean((0, 3))
    assert changed[70:][limbs].mean() > 5 * changed[:20, :10].mean()  # what the pose map says shows where it says it
