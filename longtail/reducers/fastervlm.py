from dataclasses import dataclass

from torch import Tensor

from ..reducer import Reducer, param, register
from ..similarity import top
from ..tokens import Reduced, VisualTokens


@register
@dataclass(frozen=True)
class FasterVLM(Reducer):
    """Keeps the patches that CLS attends most in the layer LLaVA reads, its heads averaged.

    [CLS] Attention is All You Need for Training-Free Visual Token Pruning; budgets 288, 144, 58, 29. The
    released code scores by `layers[22]`, keeps raster order and projects all 576 patches before it masks them; here
    only the survivors are projected, which says the same. Equal scores: the lower index stays, where it says nothing.
    """

    paper = "https://arxiv.org/abs/2412.01818v1"
    budget: int = param(144, 1, 576, 1, "visual tokens kept")

    def layers_read(self):
        return (22,)

    def reduce(self, visual):
        return Reduced.select(visual, most_attended(visual, self.budget))


def most_attended(visual: VisualTokens, count: int) -> Tensor:
    """The `count` patches that CLS attends most in `layers[22]`, heads averaged, the most attended first."""
    return top(visual.layer(22).similarity("attention_heads"), count)
