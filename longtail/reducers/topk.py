from dataclasses import dataclass

from ..reducer import Reducer, param, register
from ..similarity import long_tail
from ..tokens import SIMILARITIES, Reduced


@register
@dataclass(frozen=True)
class TopK(Reducer):
    """Keeps a fixed number of the patches that CLS is most similar to: LongTail's stage 1 without the knee.

    The main paper's fixed-length control (table 1). 156 is the constant behind its three printed counts, once the mean
    prompt length is taken off.
    """

    paper = "https://arxiv.org/abs/2409.01162"
    budget: int = param(156, 1, 576, 1, "visual tokens kept")
    layer: int = param(16, 0, 23, 1, "tower layer that scores, of 24")
    similarity: str = param("attention", choices=SIMILARITIES, help="how CLS and a patch are compared")

    def layers_read(self):
        return (self.layer,)

    def reduce(self, visual):
        curve = long_tail(visual.layer(self.layer).similarity(self.similarity), 1, "tail", self.budget)
        return Reduced.select(visual, curve.keep, curve)
