"""What tells a denoiser where and when a latent lies: sinusoids of places, of moments, and of places that drift."""

import torch
from einops import rearrange, repeat
from torch import Tensor

FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # cycles over the longer side
MOMENT_FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0)  # cycles over a window
WINDOW = 16  # frames
# Of places that drift: to a query made of such a wave, the place in the reference that has come here by now is what
# its own place is to the others.
WAVE_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # cycles over the longer side
# What a token may guess of what it shows: that it stands still, or drifts so, (right, down) in longer sides a frame.
# They are those of the drawn world that nano models are trained in; what drifts otherwise is told by the nearest.
DRIFTS = (
    (0.0, 0.0),
    (0.0, 0.0205),
    (0.0135, 0.0),
    (-0.003, 0.0215),
    (0.0036, 0.012),
    (-0.0135, 0.0),
    (0.0145, 0.0),
    (-0.009, 0.0),
)
SPEEDS = tuple(sorted({speed for drift in DRIFTS for speed in drift} - {0.0}))  # along either coordinate
NUM_POSITION_CHANNELS = 4 * len(FREQUENCIES) + 2 * len(MOMENT_FREQUENCIES) + 1
NUM_WAVES = 4 * len(WAVE_FREQUENCIES)  # of a place: sines and cosines of both coordinates
NUM_TOLD = NUM_POSITION_CHANNELS + 4 * len(WAVE_FREQUENCIES) * len(SPEEDS)


def place_channels(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of both coordinates, [24, height, width] float32; square pixels, the origin at the top left."""
    scale = 2 * torch.pi / max(height, width)
    rows, columns = (scale * (torch.arange(n, dtype=torch.float32, device=device) + 0.5) for n in (height, width))
    waves = [
        wave(f * axis)
        for f in FREQUENCIES
        for axis in (rows[:, None], columns[None])
        for wave in (torch.sin, torch.cos)
    ]
    return torch.stack([wave.expand(height, width) for wave in waves])


def moment_channels(frames: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of a frame's place in the clip, [12, frames] float32; the reference is frame 0."""
    moments = 2 * torch.pi / WINDOW * torch.arange(frames, dtype=torch.float32, device=device)
    return torch.stack([wave(f * moments) for f in MOMENT_FREQUENCIES for wave in (torch.sin, torch.cos)])


def wave_channels(frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the place from which what drifts at one of `SPEEDS` has come, along each coordinate,
    [144, frames, height, width] float32; in the reference, frame 0, of the place itself."""
    longer = max(height, width)
    rows, columns = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / longer for n in (height, width))
    moments = torch.arange(frames, dtype=torch.float32, device=device)[:, None, None]
    waves = [
        wave(2 * torch.pi * f * (axis - speed * moments)).expand(frames, height, width)
        for speed in SPEEDS
        for axis in (rows[:, None], columns[None])
        for f in WAVE_FREQUENCIES
        for wave in (torch.sin, torch.cos)
    ]
    return torch.stack(waves)


def told_channels(frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Places, moments, a flag on the reference, waves: [frames, height*width, 181] float32 in [-1, 1].

    Made where they are used: a copy from the CPU in every step makes a GPU wait, and no CUDA graph can hold it.
    """
    places = repeat(place_channels(height, width, device), "c h w -> c f h w", f=frames)
    moments = repeat(moment_channels(frames, device), "c f -> c f h w", h=height, w=width)
    flag = torch.zeros(1, frames, height, width, device=device)
    flag[:, 0] = 1
    told = torch.cat([places, moments, flag, wave_channels(frames, height, width, device)])
    return rearrange(told, "c f h w -> f (h w) c")


def drift_waves(told: Tensor) -> Tensor:
    """Of `told_channels` [F, N, 181], the waves of the place from which has come what drifts as each of `DRIFTS` says:
    [F, N, 8, 16], of rows and columns, frequency by frequency, sine and cosine.

    The product of such waves with those of a place is largest at the place from which it has come; where that lies
    outside of the picture, one longer side away, as the slowest wave has that period. Fewer latents along the longer
    side than 14 do not resolve the fastest wave's drift.
    """
    # Indexed by numbers alone: a list would be copied from the CPU.
    places = told[..., : 4 * len(FREQUENCIES)].unflatten(-1, (len(FREQUENCIES), 2, 2))
    still = torch.stack([places[..., FREQUENCIES.index(frequency), :, :] for frequency in WAVE_FREQUENCIES], dim=-2)
    drifting = told[..., NUM_POSITION_CHANNELS:].unflatten(-1, (len(SPEEDS), 2, -1))
    waves, speeds = torch.cat([still.flatten(-2)[:, :, None], drifting], dim=2), (0.0, *SPEEDS)
    return torch.stack(
        [
            torch.cat([waves[:, :, speeds.index(down), 0], waves[:, :, speeds.index(right), 1]], dim=-1)
            for right, down in DRIFTS
        ],
        dim=2,
    )


def still_rows() -> Tensor:
    """Which of the told channels are the waves of the place itself, as `drift_waves` orders them: one-hot rows,
    [16, 181]."""
    channels = torch.arange(NUM_TOLD, dtype=torch.float32)
    return torch.eye(NUM_TOLD)[drift_waves(channels[None, None])[0, 0, 0].long()]
