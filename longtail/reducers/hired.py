from dataclasses import dataclass
from math import floor

from ..reducer import Reducer, param, register
from ..similarity import top
from ..tokens import Reduced, across
from .fastervlm import most_attended


@register
@dataclass(frozen=True)
class HiRED(Reducer):
    """Keeps a share of an image's patches, those that CLS attends most in the layer LLaVA reads, and gives more of them
    to the tiles where the whole image's CLS looks early on.

    HiRED, high-resolution early dropping. P views share int(P n rate) tokens, n the patches of a whole view. The whole
    image takes int(alpha of them), at most n; each tile of the rest as many as its part of the int(n (1 - alpha))
    patches of the whole image that CLS attends most in `layers[0]`, rounded down. Inside a view the most attended of
    `layers[22]` stay, heads summed, in raster order. Of one view, which is all LLaVA-1.5 has, alpha says nothing, and
    the picks are FasterVLM's at an equal count.

    Which patches of the whole image lie in which tile: `place` (default) by their centres, as the paper draws it; the
    released code cuts the raster into as many runs of rows as there are tiles, side by side or not (`released`). A tile
    keeps at least one patch, and no more than unpadding leaves of it.
    """

    paper = "https://arxiv.org/abs/2408.10945"
    rate: float = param(0.2, 0.01, 1, 0.01, "share of the patches kept, rounded down")
    alpha: float = param(0.5, 0, 1, 0.05, "share of the kept that the whole image takes, where it has tiles beside it")
    assign: str = param("place", choices=("place", "released"), help="which patches of the whole image a tile shows")
    budget: int = param(0, 0, 576, 1, "visual tokens kept of each view, on average; 0: the rate decides")

    def layers_read(self):
        return (0, 22)

    def reduce(self, visual):
        return Reduced.select(visual, most_attended(visual, max(self._count(visual), 1)))

    def _count(self, visual) -> int:
        """Patches of this view that stay."""
        whole, tiles = visual.whole or visual, visual.tile[1]
        n = len(whole.features)
        shared = across(visual.views or (n,), self.budget) or floor((1 + tiles) * n * self.rate)
        if not tiles:
            return shared
        first = min(floor(shared * self.alpha), n)
        if visual.whole is None:
            return first
        seen = top(whole.layer(0).similarity("attention_heads"), max(floor(n * (1 - self.alpha)), 1)).tolist()
        return (shared - first) * sum(self._shows(visual, patch) for patch in seen) // len(seen)

    def _shows(self, visual, patch: int) -> bool:
        """Whether this tile shows that patch of the whole image."""
        rows, columns = visual.whole.grid
        number, tiles = visual.tile
        if self.assign == "released":
            return patch * tiles // (rows * columns) == number - 1
        left, top_, width, height = visual.region
        across, down = (patch % columns + 0.5) / columns, (patch // columns + 0.5) / rows
        return left <= across < left + width and top_ <= down < top_ + height
