"""LLaVA-1.6 as transformers lays it out: the whole image and tiles of it, rows closed by newlines, padding cut off."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from ..image import Picture, open_picture
from .layout import Box, Layout, View
from .llava import Llava

GAP = 1  # patches between the whole image and its tiles, where both are drawn
PAPER = (250, 248, 244)  # drawn around them


class LlavaNext(Llava):
    """A LLaVA-1.6 model and its processor: up to five views, each with a CLS token and a knee of its own."""

    def layout(self, size: tuple[int, int]) -> Layout:
        """The views of an image of that width and height: the whole of it, then its tiles without what is padding.

        A tile that unpadding cuts away altogether is no view. Raises ValueError for a shape that cannot be tiled.
        """
        mosaic = self._mosaic(size)
        positions = torch.arange(len(mosaic.packed))
        whole = mosaic.tile == 0
        views = [View(0, mosaic.patch[whole], positions[whole], self.grid, mosaic.whole)]
        for tile in mosaic.tile.unique()[2:].tolist():  # behind -1, the newlines, and 0
            here = mosaic.tile == tile
            views.append(View(tile, mosaic.patch[here], positions[here], *mosaic.place(here)))
        return Layout(tuple(views), positions[mosaic.tile < 0], mosaic.shape[0] * mosaic.shape[1])

    def crop(self, image: Image.Image | Picture) -> Image.Image:
        """What the model sees, at its own resolution: the whole image, squeezed, and its tiles beside or below it."""
        seen = open_picture(image)
        tiles, mosaic = self._shown(seen), self._mosaic(seen.size)
        side = tiles.shape[1]
        (rows, columns), step = mosaic.shape, side // self.grid[0]
        canvas = tiles[1:].reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
        top, left, tall, wide = (step * n for n in mosaic.extent)
        picture = Image.new("RGB", tuple(step * n for n in mosaic.canvas), PAPER)
        picture.paste(Image.fromarray(tiles[0]), (0, 0))
        standing = np.ascontiguousarray(canvas[top : top + tall, left : left + wide])
        if standing.size:
            picture.paste(Image.fromarray(standing), tuple(step * n for n in mosaic.offset))
        return picture

    @property
    def most_tiles(self) -> int:
        """Tiles an image may be cut into, beside the view of the whole of it."""
        side = self.model.config.vision_config.image_size
        return max(height * width // side**2 for height, width in self.model.config.image_grid_pinpoints)

    def _newline(self) -> list[Tensor]:
        return [self.model.model.image_newline[None].to(self.device, self.dtype)]

    def _mosaic(self, size: tuple[int, int]) -> "Mosaic":
        """How the model packs an image: it packs numbers in place of features, and so tells."""
        asked, vision = (size[1], size[0]), self.model.config.vision_config
        shape = get_anyres_image_grid_shape(asked, self.model.config.image_grid_pinpoints, vision.image_size)
        tiles, patches = 1 + shape[0] * shape[1], self.grid[0] * self.grid[1]
        numbers = torch.arange(tiles * patches, dtype=torch.float64).view(tiles, patches, 1)
        newline = torch.full((1,), -1.0, dtype=torch.float64)
        packed, _ = self.model.model.pack_image_features([numbers], [asked], "default", image_newline=newline)
        return Mosaic(packed[0][:, 0].long(), shape, self.grid[0])


@dataclass(frozen=True, eq=False)
class Mosaic:
    """One image as it is packed: `packed` [P] holds tile * patches + patch, -1 for a newline; tile 0 is the whole.

    Lengths are in patches. The tiles, without their padding, are drawn beside the whole image or below it, whichever
    makes the squarer picture.
    """

    packed: Tensor
    shape: tuple[int, int]  # rows and columns of tiles
    side: int

    @cached_property
    def tile(self) -> Tensor:
        """The tile of each packed position, -1 for a newline."""
        return torch.where(self.packed < 0, -1, self.packed // self.side**2)

    @cached_property
    def patch(self) -> Tensor:
        """The patch of its tile."""
        return self.packed % self.side**2

    @cached_property
    def extent(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of what stands of all tiles put together."""
        return self._extent(self.tile > 0)

    @cached_property
    def offset(self) -> tuple[int, int]:
        """Where that is drawn: left and top."""
        tall, wide = self.extent[2:]
        beside = (self.side + GAP + wide, max(self.side, tall))
        below = (max(self.side, wide), self.side + GAP + tall)
        return (self.side + GAP, 0) if max(beside) <= max(below) else (0, self.side + GAP)

    @cached_property
    def canvas(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        tall, wide = self.extent[2:]
        if not tall * wide:
            return self.side, self.side
        return max(self.side, self.offset[0] + wide), max(self.side, self.offset[1] + tall)

    @property
    def whole(self) -> Box:
        """Where the whole image is drawn."""
        return 0, 0, self.side / self.canvas[0], self.side / self.canvas[1]

    def place(self, here: Tensor) -> tuple[tuple[int, int], Box, Box]:
        """Grid of the positions `here` [P] of one tile, where they are drawn, and what of the image they show."""
        top, left, tall, wide = self._extent(here)
        down, right = top - self.extent[0], left - self.extent[1]
        (x, y), (width, height) = self.offset, self.canvas
        box = (x + right) / width, (y + down) / height, wide / width, tall / height
        region = right / self.extent[3], down / self.extent[2], wide / self.extent[3], tall / self.extent[2]
        return (tall, wide), box, region

    def _extent(self, here: Tensor) -> tuple[int, int, int, int]:
        if not here.any():
            return 0, 0, 0, 0
        tile, patch = self.tile[here] - 1, self.patch[here]
        down = tile // self.shape[1] * self.side + patch // self.side
        right = tile % self.shape[1] * self.side + patch % self.side
        top, left = int(down.min()), int(right.min())
        return top, left, int(down.max()) + 1 - top, int(right.max()) + 1 - left
