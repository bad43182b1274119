"""Photos of every kind come in as upright eight-bit colours, and the crop keeps its promises."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from xdyna_model.errors import InputError
from xdyna_model.images import fit, read_reference, upright
from xdyna_model.video import crop_and_resize

RAMP = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (96, 1))  # [96, 128], dark to bright from left to right


def colours(height: int = 96, width: int = 128) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 60)], -1).astype(np.uint8)


def test_plain_colours_are_exact(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "photo.png")
    seen = read_reference(tmp_path / "photo.png")
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, colours())


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotation(tmp_path: Path, tag: int) -> None:
    stored = {  # what a camera held in each way stores of the same upright view
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[tag](colours())
    exif = Image.Exif()
    exif[0x0112] = tag
    # Pillow turns a TIFF by itself, when its pixels are asked for.
    for path in (tmp_path / "photo.png", tmp_path / "photo.tiff"):
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        np.testing.assert_array_equal(read_reference(path), colours())
        with Image.open(path) as picture:
            np.testing.assert_array_equal(upright(picture), colours())


def test_exif_rotation_among_tags_of_wrong_types(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0131] = "Camera"
    data = exif.tobytes()
    seven_letters, one_fraction = b"\x01\x31\x00\x02\x00\x00\x00\x07", b"\x01\x31\x00\x05\x00\x00\x00\x01"
    broken = data.replace(seven_letters, one_fraction)
    assert broken != data
    Image.fromarray(np.ascontiguousarray(np.rot90(colours(), 1))).save(tmp_path / "photo.png", exif=broken)
    np.testing.assert_array_equal(read_reference(tmp_path / "photo.png"), colours())


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The same with red and blue in each other's places.
BLUE_FIRST = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_heeded(tmp_path: Path, mode: str) -> None:
    few = colours() // 64 * 64  # a palette has no more than 256
    Image.fromarray(few).convert(mode).save(tmp_path / "photo.png", icc_profile=BLUE_FIRST)
    seen = read_reference(tmp_path / "photo.png").astype(int)
    stored = np.asarray(Image.fromarray(few).convert(mode).convert("RGB"))
    assert np.abs(seen - stored[..., ::-1]).max() <= 1


@pytest.mark.parametrize("profile", [SRGB, b"no profile", SRGB[:200]], ids=["sRGB", "none", "cut off"])
def test_a_profile_that_says_nothing_new_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(colours()).save(tmp_path / "photo.png", icc_profile=profile)
    np.testing.assert_array_equal(read_reference(tmp_path / "photo.png"), colours())


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_a_profile_of_other_channels_changes_nothing(tmp_path: Path, mode: str) -> None:
    picture = Image.new("I;16", (80, 80), 30000) if mode == "I;16" else Image.fromarray(colours()).convert(mode)
    for name, profile in (("plain.tiff", None), ("tagged.tiff", SRGB)):
        picture.save(tmp_path / name, icc_profile=profile)
    plain, tagged = (read_reference(tmp_path / name) for name in ("plain.tiff", "tagged.tiff"))
    np.testing.assert_array_equal(plain, tagged)


@pytest.mark.parametrize("profile", [None, SRGB, BLUE_FIRST], ids=["none", "sRGB", "blue first"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_what_is_transparent_lies_on_white_whatever_the_profile(tmp_path: Path, mode: str, profile) -> None:
    path, half = tmp_path / "photo.png", np.zeros((96, 128), np.uint8)
    half[:, 64:] = 255
    if mode.endswith("A"):
        picture = Image.fromarray(colours()).convert(mode)
        picture.putalpha(Image.fromarray(half))
        picture.save(path, icc_profile=profile)
    else:
        picture = Image.fromarray(np.where(half[..., None] > 0, 100, 7).astype(np.uint8).repeat(3, -1))
        picture = picture.convert(mode, dither=Image.Dither.NONE)
        key = picture.getpixel((0, 0))
        picture.save(path, icc_profile=profile, transparency=key)
    seen = read_reference(path)
    assert (seen[:, :64] == 255).all()
    assert not (seen[:, 64:] == 255).all()


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([colours(), np.full((96, 128), 255, np.uint8)])
    rgba[:48, :, 3] = 0
    Image.fromarray(rgba, "RGBA").save(tmp_path / "photo.png")
    seen = read_reference(tmp_path / "photo.png")
    assert (seen[:48] == 255).all()
    np.testing.assert_array_equal(seen[48:], colours()[48:])


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (100, 80), 0)
    image.putpalette([200, 10, 10, 0, 0, 255])
    image.paste(1, (0, 0, 50, 80))
    image.save(tmp_path / "photo.png", transparency=0)
    seen = read_reference(tmp_path / "photo.png")
    assert (seen[:, :50] == (0, 0, 255)).all()
    assert (seen[:, 50:] == 255).all()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / name)
    seen = read_reference(tmp_path / name)
    np.testing.assert_array_equal(seen, np.repeat(RAMP[..., None], 3, -1))


@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("1", "a.png"), ("LA", "a.png"), ("CMYK", "a.jpg")])
def test_other_modes(tmp_path: Path, mode: str, name: str) -> None:
    Image.fromarray(RAMP).convert(mode).save(tmp_path / name)
    seen = read_reference(tmp_path / name).astype(int)
    assert seen.shape == (96, 128, 3)
    assert seen[:, 100:].mean() > 150
    assert seen[:, :28].mean() < 60


def test_animation_gives_its_first_picture(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (read_reference(tmp_path / "a.gif") == (255, 0, 0)).all()


def cut_off(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:3000])


def broken_avif(path: Path) -> None:
    Image.fromarray(colours()).save(path, "AVIF")
    head, tag, pixels = path.read_bytes().partition(b"mdat")
    path.write_bytes(head + tag + bytes(len(pixels)))


def broken_png(path: Path) -> None:
    Image.fromarray(colours()).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\x00" * (len(data) - len(data) // 2)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is an empty file"),
        (lambda path: path.write_text("no picture"), "is not a picture"),
        (cut_off, "is damaged or cut off"),
        (broken_png, "is damaged or cut off"),
        (broken_avif, "is damaged or cut off"),
        (lambda path: Image.new("F", (100, 100)).save(path, "TIFF"), "floating-point pixels have no agreed range"),
        (
            lambda path: Image.new("RGB", (40, 300)).save(path, "PNG"),
            "only 40x300 pixels; give a picture of at least 64",
        ),
    ],
)
def test_what_cannot_be_animated(tmp_path: Path, make, says: str) -> None:
    path = tmp_path / "photo"
    make(path)
    with pytest.raises(InputError) as error:
        read_reference(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("limit", [6000, 3000])  # Pillow warns above its limit, and refuses above twice that
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="million pixels; scale it down"):
        read_reference(tmp_path / "bomb.png")


# The crop

sides = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(h=sides, w=sides, height=sides, width=sides, level=st.integers(0, 255))
def test_size_is_kept_and_constant_stays_constant(h: int, w: int, height: int, width: int, level: int) -> None:
    seen = fit(np.full((h, w, 3), level, np.uint8), height, width)
    assert seen.shape == (height, width, 3)
    assert (seen == level).all()


@settings(max_examples=60, deadline=None)
@given(h=sides, w=sides, height=sides, width=sides, seed=st.integers(0, 2**16))
def test_mirror(h: int, w: int, height: int, width: int, seed: int) -> None:
    """A mirrored picture gives the mirrored result."""
    if w * height >= width * h:
        assume((w - max(1, h * width // height)) % 2 == 0)  # else one side has to lose a column more
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    mirrored = fit(np.ascontiguousarray(image[:, ::-1]), height, width)[:, ::-1]
    assert np.abs(fit(image, height, width).astype(int) - mirrored).max() <= 1  # fixed-point rounding


def test_too_tall_loses_a_quarter_at_the_top() -> None:
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None, None], 20, 1).repeat(3, 2)  # [100, 20, 3]
    np.testing.assert_array_equal(fit(rows, 60, 20), rows[10:70])


def test_too_wide_loses_the_same_on_both_sides() -> None:
    columns = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)  # [20, 100, 3]
    np.testing.assert_array_equal(fit(columns, 20, 60), columns[:, 20:80])


def test_shrinking_averages() -> None:
    """A fine chessboard turns grey; dropping pixels would keep it black and white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    seen = fit(np.repeat(board[..., None], 3, -1).astype(np.uint8), 16, 16)
    assert np.abs(seen.astype(int) - 128).max() <= 8


def test_frames_are_cropped_one_by_one() -> None:
    frames = np.stack([colours(), 255 - colours()])
    np.testing.assert_array_equal(crop_and_resize(frames, 40, 24), np.stack([fit(f, 40, 24) for f in frames]))
