"""Pictures in: a photo as it is meant to be seen, and the crop and size that the model wants."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from xdyna_model.errors import InputError

MIN_SIDE = 64  # pixels; below this there is nothing to animate (8 latents)
_BLOCK = 64 * 2**20  # bytes; glibc keeps no freed piece of memory of more than 32 MiB
# By EXIF's tag Orientation, what turns a stored picture upright. Pillow's `exif_transpose` does it too, but writes the
# other tags anew, and fails at the first that has a wrong type.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_reference(path: str | Path) -> np.ndarray:
    """Read the photo that is to be animated: upright, eight bits, three colours, on white where it is transparent.

    Of an animated file the first picture is taken. Returns [H, W, 3] uint8 RGB, at the size of the file.
    Raises InputError: missing, empty, damaged or too large a file, no picture, or a side below `MIN_SIDE` pixels.
    """
    path = Path(path)
    check_file(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in metadata; what Pillow still reads is good enough
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                rgb = upright(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InputError(f"{path}: has more than {limit} million pixels; scale it down first") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is not a picture that can be read; save it as PNG or JPEG") from error
    # Pillow reports damage through whatever its decoders happen to raise.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: is damaged or cut off; save it again as PNG or JPEG") from error
    height, width = rgb.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{path}: is only {width}x{height} pixels; give a picture of at least {MIN_SIDE} pixels on each side"
        )
    return rgb


def check_file(path: Path, kind: str) -> None:
    """Raise InputError unless `path` is a file that is there, is not empty and may be read. kind: "picture"..."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a {kind} file")
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: is an empty file; give a {kind}")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the name of the {kind}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop a picture to the ratio width:height and scale it to that size.

    Too tall a picture loses a quarter of the excess at the top and the rest at the bottom (heads are at the top);
    too wide a one loses the same on both sides: the cut of the released code. Scaling is antialiased.
    image: [H, W, 3] uint8. Returns [height, width, 3] uint8.
    """
    rows, columns = image.shape[:2]
    left, top, right, bottom = crop_box(rows, columns, height, width)
    image = image[top:bottom, left:right]
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = height <= image.shape[0]
    picture = Image.fromarray(image).resize(
        (width, height), Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    )
    return np.asarray(picture)


def crop_box(h: int, w: int, height: int, width: int) -> tuple[int, int, int, int]:
    """What `fit` keeps of a picture of h x w pixels: left, top, right and bottom, the last two outside of it."""
    if w * height < width * h:
        keep = max(1, w * height // width)
        top = (h - keep) // 4
        return 0, top, w, top + keep
    keep = max(1, h * width // height)
    left = (w - keep) // 2
    return left, 0, left + keep, h


class FrameBuffer:
    """Pictures of one size, [H, W, 3] uint8 each, one after another into one array, in little more memory than that.

    They are kept in blocks so large that the C library gives each back to the system at once: of single pictures, freed
    among others that stay, it would keep the space.
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, ...] | None:
        """[H, W, 3] of the pictures; None where there is none yet."""
        return self._blocks[0].shape[1:] if self._blocks else None

    def append(self, picture: np.ndarray) -> None:
        """Raises InputError for a picture of another size than the first."""
        if picture.shape != (self.shape or picture.shape):
            raise InputError(f"frame {self._count} is {list(picture.shape)} but frame 0 is {list(self.shape or ())}")
        if not self._blocks or self._count % len(self._blocks[0]) == 0:
            self._blocks.append(np.empty((-(-_BLOCK // max(1, picture.size)), *picture.shape), np.uint8))
        self._blocks[-1][self._count % len(self._blocks[0])] = picture
        self._count += 1

    def take(self) -> np.ndarray:
        """All pictures, [F, H, W, 3]; F is at least 1. The buffer is empty after it."""
        whole = np.empty((self._count, *self._blocks[0].shape[1:]), np.uint8)
        while self._blocks:
            block = self._blocks.pop()
            part = whole[len(self._blocks) * len(block) :][: len(block)]
            part[:] = block[: len(part)]
        self._count = 0
        return whole


def upright(image: Image.Image) -> np.ndarray:
    """A picture as it is meant to be seen: turned as its EXIF data say, in sRGB where it has a colour profile, on white
    where it is transparent.

    image: any mode of Pillow. Returns [H, W, 3] uint8 RGB. Raises InputError for floating-point pixels.
    """
    image.load()  # Pillow turns a TIFF by itself when it loads it, and takes the tag away
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise InputError("floating-point pixels have no agreed range; save it as PNG or JPEG")
    image = _in_srgb(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        image = Image.alpha_composite(white, colours)
    return np.asarray(image.convert("RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB, or as it is where it has no other profile, or one that cannot be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image.convert("RGB" if image.mode in ("P", "PA", "RGBA") else image.mode.removesuffix("A"))
    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or of other channels than the picture's
        return image
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
