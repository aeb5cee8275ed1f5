"""One decoder for every way in: bytes or a path become an upright RGB picture, or a reason why not."""

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .bare import PROGRESSIVE, RUN_LENGTH, Bare, bare

Size = tuple[int, int]  # width and height
Flip = Image.Transpose
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS, MAX_SIDE, MAX_BYTES = 40_000_000, 12_000, 200_000_000
FEWER = {"WEBP": 16_000_000, PROGRESSIVE: 24_000_000, RUN_LENGTH: 2_000_000}  # they take more memory, or time, a pixel
MAX_ASPECT = 100  # a model reads squares: of a longer strip it would see under a hundredth, at the cost of all
ORIENTATION = 0x0112  # an EXIF tag
TURNS = {2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE}
TURNS |= {6: Flip.ROTATE_270, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_90}
SIDEWAYS = (5, 6, 7, 8)  # width and height change places
BAND = 64  # rows made RGB at a time
SMALL = 1_000_000  # pixels
# Larger pictures are decoded one after another, in one thread for all: memory is the process's, so the turn for it is,
# too, and malloc keeps some of what was freed for each thread that decodes: with Pillow's usual blocks up to 230 MB.
DESK = ThreadPoolExecutor(1, "decoding")
os.register_at_fork(after_in_child=lambda: globals().update(DESK=ThreadPoolExecutor(1, "decoding")))  # it has no thread
Image.core.set_block_size(2**28)  # larger than what malloc keeps
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

    Size is checked on the header, before a pixel is decoded, and metadata is left out unread but for the direction. A
    picture of more than a megapixel waits until no other is being decoded; while it is, up to 300 MB are taken. Raises
    BadImage, a ValueError, with a sentence.
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
        return _given(source)
    name = "the image" if isinstance(source, bytes) else readable(Path(source).name)
    data = source if isinstance(source, bytes) else _read(source)
    try:
        return _decoded(bare(data), name, enough)
    except BadImage:
        raise
    except ValueError as error:
        raise BadImage(f"{name} {error}: save it again and try once more") from error


def readable(name: object) -> str:
    """A name in one line of at most 80 characters that can be printed anywhere."""
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(name))
    return text if len(text) <= 80 else f"{text[:50]}...{text[-27:]}"


def _read(path: str | Path) -> bytes:
    """The bytes of a file. Raises BadImage where there is none, or too many."""
    try:
        if not Path(path).is_file():  # a device, a pipe or a folder is none
            raise FileNotFoundError
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = "" if isinstance(error, FileNotFoundError) else f" that can be read ({type(error).__name__})"
        raise BadImage(
            f"there is no image file{why} at {readable(path)}: give the path of a {_either()} file"
        ) from error
    if len(data) > MAX_BYTES:
        raise BadImage(f"{readable(Path(path).name)} is too large a file: at most {MAX_BYTES // 1_000_000} MB")
    return data


def _given(image: Image.Image) -> Picture:
    """The picture of an image that somebody else opened: a copy."""
    refuse_size(image.size, "the image")
    with _damage("the image"):
        turn = image.getexif().get(ORIENTATION)
        image.load()
        upright = image.copy() if _plain(image, turn) else _merged(_planes(image), turn)
        return Picture(upright, image.size[:: -1 if turn in SIDEWAYS else 1])


def _decoded(file: Bare, name: str, enough: Callable[[Size], Size] | None) -> Picture:
    """The picture of a file."""
    try:
        image = Image.open(io.BytesIO(file.data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"{name} is too large: {LIMITS}") from error
    except Exception as error:
        raise BadImage(f"{name} is not a readable {_either()} file: save it as one of these and try again") from error
    refuse_size(image.size, name, file.kind)
    work = partial(_picture, image, file, name, enough)
    return DESK.submit(work).result() if image.width * image.height > SMALL else work()


def _picture(image: Image.Image, file: Bare, name: str, enough: Callable[[Size], Size] | None) -> Picture:
    """The picture of a file whose header was read."""
    sideways = -1 if file.turn in SIDEWAYS else 1
    size = image.size[::sideways]
    with _damage(name):
        if enough:
            image.draft(None, enough(size)[::sideways])  # of a JPEG; other formats know no such thing
        image.load()  # the first frame
        if _plain(image, file.turn) and file.kind != "WEBP":  # which would keep its decoder, and what that holds
            return Picture(image, size)
        planes = _planes(image)
        image.close()  # before the merged one is made: the two together are more than is to be taken
        return Picture(_merged(planes, file.turn), size)


def refuse_size(size: Size, name: str, kind: str = ""):
    """BadImage for more pixels, a longer side or a longer strip than is read."""
    width, height = size
    pixels, most, what = width * height, FEWER.get(kind, MAX_PIXELS), f"{name} is {width} x {height}"
    if pixels > MAX_PIXELS or max(size) > MAX_SIDE:
        raise BadImage(f"{what}, too large: {LIMITS}")
    if pixels > most:
        raise BadImage(
            f"{what}, too large for a {kind}: at most {most // 1_000_000} megapixels, save it as a plain JPEG"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise BadImage(f"{what}, too thin a strip: at most {MAX_ASPECT} times as long as wide, crop it first")


@contextmanager
def _damage(name: str):
    """What goes wrong in here is the image's fault, and becomes BadImage."""
    try:
        yield
    except Exception as error:
        why = readable(error)
        raise BadImage(f"{name} is damaged or cut short ({why}): save it again and try once more") from error


def _plain(image: Image.Image, turn: int | None) -> bool:
    """Whether an image is upright RGB as it stands."""
    return image.mode == "RGB" and not image.has_transparency_data and turn not in TURNS


def _planes(image: Image.Image) -> list[Image.Image]:
    """The red, the green and the blue of an image, on white; made in bands, so that no second image is held."""
    planes = [Image.new("L", image.size) for _ in "RGB"]
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        for plane, color in zip(planes, _on_white(band).split(), strict=True):
            plane.paste(color, (0, top))
    return planes


def _merged(planes: list[Image.Image], turn: int | None) -> Image.Image:
    """The planes turned, one after another where they stand, and made one RGB image."""
    for at in range(len(planes) * (turn in TURNS)):
        planes[at] = planes[at].transpose(TURNS[turn])
    return Image.merge("RGB", planes)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255; 257 maps 65535 to 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype("uint8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _either() -> str:
    return ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
