"""One decoder for every way in: bytes or a path become an upright RGB picture, or a reason why not."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Size = tuple[int, int]  # width and height
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS, MAX_SIDE = 40_000_000, 12_000
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # an EXIF tag, and its values where width and height change places
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our cap is lower, and refuses
LIMITS = f"at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side"


class BadImage(ValueError):
    """An image we refuse; the message is for the person who gave it."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright RGB image and the width and height it came in: a JPEG may have been decoded smaller."""

    image: Image.Image
    size: Size


def open_image(source: bytes | str | Path | Image.Image) -> Image.Image:
    """Decode one image to upright RGB: first frame, EXIF turned, transparency on white, 16-bit grey scaled.

    Size is checked on the header, before a pixel is decoded. Raises BadImage, a ValueError, with a sentence.
    """
    return open_picture(source).image


def open_picture(
    source: bytes | str | Path | Image.Image | Picture, enough: Callable[[Size], Size] | None = None
) -> Picture:
    """The same, with the size it came in; a Picture is one already.

    `enough` tells, for the upright size of an image, what width and height will do: a JPEG, from bytes or a path, is
    then decoded at a half, a quarter or an eighth of its size, where that is no less.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _upright(source, "the image")
    name = "the image" if isinstance(source, bytes) else Path(source).name
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise BadImage(f"there is no image file at {source}: give the path of a {_either()} file")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"{name} is too large: {LIMITS}") from error
    except Exception as error:
        raise BadImage(f"{name} is not a readable {_either()} file: save it as one of these and try again") from error
    with image:
        return _upright(image, name, ours=True, enough=enough)


def _upright(
    image: Image.Image, name: str, ours: bool = False, enough: Callable[[Size], Size] | None = None
) -> Picture:
    """The picture of an image, which is turned where it stands if it is `ours`, else copied."""
    size = image.size
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise BadImage(f"{name} is {image.width} x {image.height}, too large: {LIMITS}")
    try:
        turn = -1 if image.getexif().get(ORIENTATION) in SIDEWAYS else 1
        if enough:
            image.draft(None, enough(size[::turn])[::turn])  # of a JPEG; other formats know no such thing
        image.load()  # the first frame
        upright = ImageOps.exif_transpose(image, in_place=ours) or image
        return Picture(_on_white(upright), size[::turn])
    except Exception as error:
        raise BadImage(f"{name} is damaged or cut short ({error}): save it again and try once more") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255; 257 maps 65535 to 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype("uint8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _either() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
