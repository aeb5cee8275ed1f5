"""Where the patches of an image's views stand in the prompt: what unpadding leaves of each, and the rows' newlines."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tokens import Reduced

Box = tuple[float, float, float, float]  # left, top, width, height, as shares


@dataclass(frozen=True, eq=False)
class View:
    """One view of the image that has patches in the prompt."""

    tile: int  # of the pixels handed to the tower
    patches: Tensor  # [N] of that tile's, in raster order
    positions: Tensor  # [N] where each stands, counted from the first placeholder
    grid: tuple[int, int]  # rows, columns that stand
    box: Box = (0, 0, 1, 1)  # in the model's crop
    region: Box = (0, 0, 1, 1)  # of the image

    def same(self, other: "View") -> bool:
        """Whether the same patches stand at the same positions, drawn in the same place."""
        told, theirs = ((view.tile, view.grid, view.box, view.region) for view in (self, other))
        pairs = ((self.patches, other.patches), (self.positions, other.positions))
        return told == theirs and all(torch.equal(*pair) for pair in pairs)


@dataclass(frozen=True, eq=False)
class Arranged:
    """The run of visual tokens and newlines [P] that stands in place of the placeholders."""

    order: Tensor  # [P] index into the tokens of all views, one view after another; -1: a newline
    raster: Tensor  # [P, 2] row and column, in its view's grid, of the patch each stands on; -1 for none

    @property
    def visual(self) -> Tensor:
        """Which of the run [P] are visual tokens."""
        return self.order >= 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Every view that stands, the view of the whole image first, and the newlines that close the rows of the tiles.

    The first view is one flat run before any row, and keeps the order its reducer gave it. Tiles interleave row by row,
    so their tokens are sorted by the patch they stand on; one that stands on none (`keep` -1) goes before the first
    patch of its view where it came first, else behind the last one.
    """

    views: tuple[View, ...]
    newlines: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # [R] positions, ascending
    tiles: int = 0  # the image was cut into, beside the whole view

    @classmethod
    def single(cls, grid: tuple[int, int]) -> "Layout":
        """One view, all of whose patches stand."""
        every = torch.arange(grid[0] * grid[1])
        return cls((View(0, every, every, grid),))

    def __len__(self) -> int:
        """Placeholders: patches that stand and newlines."""
        return sum(self.sizes) + len(self.newlines)

    def same(self, other: "Layout") -> bool:
        """Whether the same patches stand at the same positions, drawn in the same places."""
        return len(self.views) == len(other.views) and all(map(View.same, self.views, other.views))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Patches of each view."""
        return tuple(len(view.patches) for view in self.views)

    def arrange(self, views: list[Reduced]) -> Arranged:
        """The run that survivors make. A newline goes where its row had patches and is left without a token."""
        keys = torch.cat([self._keys(i, reduced.keep) for i, reduced in enumerate(views)])
        raster = torch.cat([_raster(view, reduced.keep) for view, reduced in zip(self.views, views, strict=True)])
        newlines = self._closing(keys)
        order = torch.cat([keys, 2 * newlines]).argsort(stable=True)
        order = torch.where(order < len(keys), order, -1)
        return Arranged(order, torch.where(order[:, None] < 0, -1, raster[order]))

    def _keys(self, i: int, keep: Tensor) -> Tensor:
        """What the tokens of view `i` are sorted by: twice the position of their patch, extra ones a step beside."""
        if i == 0:
            return torch.arange(len(keep)) - len(keep)
        positions = self.views[i].positions
        lead = (keep >= 0).cumsum(0) == 0
        beside = torch.where(lead, 2 * positions[0] - 1, 2 * positions[-1] + 1)
        return torch.where(keep < 0, beside, 2 * positions[keep.clamp_min(0)])

    def _closing(self, keys: Tensor) -> Tensor:
        """The newlines that stay."""
        standing = torch.cat([keys[:0], *(2 * view.positions for view in self.views[1:])])
        had, kept = self._in_rows(standing), self._in_rows(keys[keys >= 0])
        return self.newlines[(kept > 0) | (had == 0)]

    def _in_rows(self, keys: Tensor) -> Tensor:
        """How many of the keys lie in each row."""
        return torch.bincount(torch.searchsorted(2 * self.newlines, keys), minlength=len(self.newlines))


def _raster(view: View, keep: Tensor) -> Tensor:
    place = torch.stack([keep // view.grid[1], keep % view.grid[1]], dim=1)
    return torch.where(keep[:, None] < 0, -1, place)
