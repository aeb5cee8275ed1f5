"""From a picture to the pixels a tower reads: bit for bit as transformers' Pillow processors, or faster and a few grey
levels off."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_utils import select_best_resolution

from ..image import Picture, Size, open_picture

KNOWN = ("CLIPImageProcessorPil", "LlavaNextImageProcessorPil")  # whose steps are taken here one by one
WHITE = 255.0
HAIR = 1 + 1e-9  # torch rounds the new size down
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Placed:
    """The picture resized to `size`, its top left corner at `corner` of a black canvas that is cut into square views;
    all as width and height. What lies beyond the canvas is cropped."""

    size: Size
    canvas: Size
    corner: tuple[int, int]


class Stock:
    """Any image processor of transformers, called as it is."""

    def __init__(self, processor):
        self.processor = processor

    def open(self, source) -> Picture:
        """Decode a path, bytes or a PIL image. Raises BadImage as `open_image` does."""
        return open_picture(source)

    def read(self, picture: Picture, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Normalised pixels [V, 3, S, S] on the device: a whole view, then the tiles where there are any."""
        return self._asked(picture).to(device, dtype)

    def views(self, picture: Picture, device: torch.device) -> Tensor:
        """The same as grey levels [V, 3, S, S], uint8."""
        return self._asked(picture, do_rescale=False, do_normalize=False).round().clamp(0, 255).byte()

    def _asked(self, picture: Picture, **steps) -> Tensor:
        return self.processor(picture.image, return_tensors="pt", **steps)["pixel_values"].flatten(0, -4)


class Exact(Stock):
    """The same pixels, bit for bit, as CLIP's and LLaVA-1.6's Pillow processors make: the same Pillow resize and the
    same arithmetic, without what stands around them (`python -m longtail bench preprocess` tells what that costs)."""

    def __init__(self, processor):
        super().__init__(processor)
        self.side, self.pinpoints = processor.crop_size["height"], getattr(processor, "image_grid_pinpoints", None)
        of_channels = [WHITE] * 3, processor.image_mean, processor.image_std
        self.white, self.mean, self.std = (torch.tensor(values)[:, None, None] for values in of_channels)

    def read(self, picture, device, dtype) -> Tensor:
        return self.normalise(self.views(picture, device).to(device), dtype)

    def normalise(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """Grey levels [V, 3, S, S], uint8, as the numbers a tower reads.

        transformers multiplies by 1 / 255 in float64 and rounds; float32 divided by 255 are the same 256 numbers, where
        it is divided: by a number, a GPU would multiply.
        """
        white, mean, std = (values.to(levels.device) for values in (self.white, self.mean, self.std))
        return levels.float().div_(white).sub_(mean).div_(std).to(dtype)

    def views(self, picture, device) -> Tensor:
        return torch.cat([self._cut(self._framed(picture.image, placed)) for placed in self.placed(picture.size)])

    def placed(self, size: Size) -> tuple[Placed, ...]:
        """How a picture of that width and height is shown: its centre, or, with tiles, the whole squeezed and then the
        canvas that fits it best."""
        square = (self.side, self.side)
        if self.pinpoints:
            return Placed(square, square, (0, 0)), self._tiled(size)
        shorter, longer = min(size), int(self.side * max(size) / min(size))
        resized = tuple(self.side if length == shorter else longer for length in size)
        return (Placed(resized, square, tuple(-((length - self.side) // 2) for length in resized)),)

    def _tiled(self, size: Size) -> Placed:
        """Tiles: as large as the canvas allows, in its middle."""
        width, height = size
        tall, wide = select_best_resolution((height, width), self.pinpoints)
        if wide / width < tall / height:
            resized = wide, min(math.ceil(height * (wide / width)), tall)
        else:
            resized = min(math.ceil(width * (tall / height)), wide), tall
        return Placed(resized, (wide, tall), ((wide - resized[0]) // 2, (tall - resized[1]) // 2))

    def _framed(self, image: Image.Image, placed: Placed) -> Tensor:
        """The canvas [H, W, 3], uint8."""
        (left, top), (width, height) = placed.corner, placed.canvas
        resized = image.resize(placed.size, self.processor.resample)
        return torch.from_numpy(np.array(resized.crop((-left, -top, width - left, height - top))))

    def _cut(self, canvas: Tensor) -> Tensor:
        """A canvas [H, W, 3] as its views [V, 3, S, S], row by row."""
        rows, columns = (length // self.side for length in canvas.shape[:2])
        views = canvas.view(rows, self.side, columns, self.side, 3).permute(0, 2, 4, 1, 3)
        return views.reshape(-1, 3, self.side, self.side)


class Fast(Exact):
    """Three shortcuts. A JPEG given as path or bytes is decoded at a half, a quarter or an eighth of its size where
    that is no less than what is needed; torch resizes, with the same antialiased cubic and coarser weights; on a GPU it
    does so there, the picture going over as bytes.

    What that changes, measured in grey levels of 255: at most 2, and 0.01 on average, where no JPEG is decoded smaller;
    where one is, at most 8 and 0.7 on average, over drawn photographs of 0.3 to 6 megapixels. The bundled model gave
    the same answer to all 189 questions on 20 held-out scenes. On a GPU torch resizes in float32 and rounds, which was
    not run yet. A JPEG whose sides are no multiples of its reduction, turned by EXIF, may lie up to a pixel aside.
    """

    def open(self, source) -> Picture:
        return open_picture(source, self._enough)

    def _enough(self, size: Size) -> Size:
        """The least width and height that no resize enlarges."""
        wide, tall = zip(*(placed.size for placed in self.placed(size)), strict=True)
        return max(wide), max(tall)

    def views(self, picture, device) -> Tensor:
        levels = torch.from_numpy(np.array(picture.image)).to(device)
        return torch.cat([self._cut(self._laid(levels, picture, placed)) for placed in self.placed(picture.size)])

    def _laid(self, levels: Tensor, picture: Picture, placed: Placed) -> Tensor:
        """The canvas [H, W, 3] of a picture's `levels` [h, w, 3], both uint8.

        The scale is that of the size it came in: of a JPEG decoded smaller, the last column may be part of one.
        """
        source, step = levels.permute(2, 0, 1)[None], round(picture.size[0] / levels.shape[1])
        source = source.float() if source.is_cuda else source  # torch resizes bytes on a CPU alone
        scale = [HAIR * new * step / old for new, old in zip(placed.size[::-1], picture.size[::-1], strict=True)]
        resized = functional.interpolate(source, scale_factor=scale, mode="bicubic", antialias=True)[0]
        resized = resized.round().clamp(0, 255).byte() if source.is_cuda else resized
        (left, top), (width, height) = placed.corner, placed.canvas
        right, bottom = width - left - placed.size[0], height - top - placed.size[1]
        return functional.pad(resized, (left, right, top, bottom)).permute(1, 2, 0)


KINDS = {"exact": Exact, "fast": Fast}


def refuse_kind(kind: str):
    """ValueError for pixels of another kind than these."""
    if kind not in KINDS:
        raise ValueError(f"pixels must be one of {', '.join(KINDS)}, got {kind!r}")


def make(kind: str, processor, name: str = "this model") -> Stock:
    """What makes the pixels for an image processor: exact or fast. Raises ValueError for another kind, and for fast
    where the processor takes other steps than those known here; exact then leaves all to it."""
    refuse_kind(kind)
    if _known(processor):
        return KINDS[kind](processor)
    if kind == "fast":
        raise ValueError(f"{name} prepares its images in a way that has no fast form here: use pixels exact")
    return Stock(processor)


def _known(processor) -> bool:
    """Whether a processor is of a known kind, and set to make square views by a cubic resize."""
    if type(processor).__name__ not in KNOWN or not all(getattr(processor, step) for step in STEPS):
        return False
    size, crop = dict(processor.size), dict(processor.crop_size)
    square = list(size) == ["shortest_edge"] and crop == dict.fromkeys(("height", "width"), size["shortest_edge"])
    return square and (processor.resample, processor.rescale_factor) == (Image.Resampling.BICUBIC, 1 / WHITE)
