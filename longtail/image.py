"""One decoder for every way in: bytes or a path become an upright RGB picture, or a reason why not."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS, MAX_SIDE = 40_000_000, 12_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our cap is lower, and refuses
LIMITS = f"at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side"


class BadImage(ValueError):
    """An image we refuse; the message is for the person who gave it."""


def open_image(source: bytes | str | Path | Image.Image) -> Image.Image:
    """Decode one image to upright RGB: first frame, EXIF turned, transparency on white, 16-bit grey scaled.

    Size is checked on the header, before a pixel is decoded. Raises BadImage, a ValueError, with a sentence.
    """
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
        return _upright(image, name)


def _upright(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise BadImage(f"{name} is {image.width} x {image.height}, too large: {LIMITS}")
    try:
        image.load()  # the first frame
        return _on_white(ImageOps.exif_transpose(image))
    except Exception as error:
        raise BadImage(f"{name} is damaged or cut short ({error}): save it again and try once more") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255; 257 maps 65535 to 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype("uint8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _either() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
