from dataclasses import dataclass

from ..reducer import Reducer, param, register
from ..tokens import Reduced
from .fastervlm import most_attended


@register
@dataclass(frozen=True)
class HiRED(Reducer):
    """Keeps a share of the patches of a view, those that CLS attends most in the layer LLaVA reads.

    HiRED, high-resolution early dropping. Of one view, which is all LLaVA-1.5 has, the released code keeps the top
    int(576 rate) by the summed heads of `layers[22]`, in raster order: FasterVLM's picks at an equal count, since a sum
    ranks as a mean does.

    Not here, for a reducer sees one view: the allocation over the views of LLaVA-NeXT. There P views share
    int(P 576 rate) tokens; the full image takes the share `alpha` (0.5) of them, at most 576, and each tile of the rest
    as many as its part of the 576 (1 - alpha) patches of the full image that CLS attends most in `layers[0]`. `alpha`
    says nothing where there is one view, so it is no field; on several, each view gets the same `rate`.
    """

    paper = "https://arxiv.org/abs/2408.10945"
    rate: float = param(0.2, 0.01, 1, 0.01, "share of the patches kept, rounded down")
    budget: int = param(0, 0, 576, 1, "visual tokens kept, whatever the rate says; 0: the rate decides")

    def layers_read(self):
        return (22,)

    def reduce(self, visual):
        count = self.budget or max(int(len(visual.features) * self.rate), 1)
        return Reduced.select(visual, most_attended(visual, count))
