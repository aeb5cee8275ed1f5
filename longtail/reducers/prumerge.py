from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..similarity import above_fence, top
from ..tokens import Reduced, VisualTokens

NEIGHBOURS = 32


@register
@dataclass(frozen=True)
class PruMerge(Reducer):
    """Keeps the patches whose CLS attention is an outlier, and merges into each the patches with similar keys.

    PruMerge, sections 3.2 and 3.3, algorithm 1. Outliers lie strictly above Q3 + 1.5 IQR of the full-width CLS
    attention of the tower's last layer; the features are those LLaVA reads, one layer earlier.

    `released` (default, what the published numbers were run with): each centre is its own feature plus its 32 nearest
    by key cosine, chosen among all other patches, each times its raw attention; an extra token is the same sum over
    all that were not selected. `paper`: algorithm 1 as printed has no extra token and leaves the centre out of its sum,
    by key dot product; its tokens are near zero. Tokens come in attention order, extra last, as released: not in
    raster order.

    Ours: a patch is spoken for by the centre most similar to it among those that merged it, else by the extra token
    (`paper`: it is dropped); `paper` keeps one patch where nothing is an outlier; `released` then hands over the extra
    token alone, as its code does. `budget` replaces the count of outliers.
    """

    paper = "https://arxiv.org/abs/2403.15388"
    variant: str = param("released", choices=("released", "paper"), help="released code, or algorithm 1 as printed")
    budget: int = param(0, 0, 577, 1, "visual tokens handed over, the extra one counted; 0: the outliers decide")

    def layers_read(self):
        return (23,)

    def reduce(self, visual):
        attention = visual.layer(23).similarity("attention").cpu()  # the one host synchronisation
        literal, n = self.variant == "paper", len(attention)
        count = min(self.budget, n) - (not literal) if self.budget else max(above_fence(attention), int(literal))
        return gathered(visual, attention, top(attention, count), literal)


def others(chosen: Tensor, n: int) -> Tensor:
    """Which of n patches are not `chosen`, in raster order."""
    left = torch.ones(n, dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().flatten()


def gathered(visual: VisualTokens, attention: Tensor, centres: Tensor, literal: bool) -> Reduced:
    """The patches `centres`, each with what it merged, and the extra token; `literal`: algorithm 1 as printed.

    `attention` [N] and `centres` are on the host.
    """
    key, place = visual.layer(23).key[1:], centres.to(visual.features.device)
    affinity = key.index_select(0, place).float() @ key.float().T if literal else cosine(key, place)
    tokens, source = merge(visual.features, attention.to(place.device), affinity, place, 0 if literal else 1)
    if literal:
        return Reduced.merging(tokens[:-1], centres, source.masked_fill(source == len(centres), -1))
    return Reduced.merging(tokens, functional.pad(centres, (0, 1), value=-1), source)


def cosine(key: Tensor, centres: Tensor) -> Tensor:
    """Cosines [m, N] of the keys at `centres` [m] with all of `key` [N, D], float32."""
    key = key.float()
    length = key.norm(dim=1).clamp_min(1e-12)
    return key.index_select(0, centres) @ key.T / length[centres, None] / length


def merge(
    features: Tensor, attention: Tensor, affinity: Tensor, centres: Tensor, own: float = 1, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each of the m `centres` merges the 32 others of the highest `affinity` [m, N]; the extra token comes last.

    Tokens [m+1, D]: sums of `features` [N, D], weighted by the `attention` [N] of what is merged and by `own` for a
    centre itself; of few terms, so they are gathered, not multiplied by a matrix of zeros. Source [N]: the token that
    speaks for each of the N; m where no centre merged it. Only those `among` [N], if given, are merged.
    """
    m, n = affinity.shape
    rows, rest = torch.arange(m, device=centres.device), torch.ones_like(attention, dtype=torch.bool)
    affinity = affinity.index_put((rows, centres), affinity.new_tensor(-torch.inf))  # no centre merges itself
    if among is not None:
        affinity, rest = affinity.masked_fill(~among, -torch.inf), among.clone()
    near = nearest(affinity, NEIGHBOURS)
    rest[centres] = False
    count = max(min(NEIGHBOURS, (n if among is None else int(among.sum())) - 1), 1)  # merged by each
    pick = torch.nonzero_static(near, size=m * count, fill_value=0)[:, 1].view(m, count)
    weight, states = (attention * near).gather(1, pick), features.float()
    merged = functional.embedding_bag(pick, states, mode="sum", per_sample_weights=weight) + own * states.index_select(
        0, centres
    )
    extra = (attention * rest)[None] @ states
    unmerged = affinity.new_full((1, n), torch.finfo(affinity.dtype).min)
    source = torch.cat([affinity.masked_fill(~near, -torch.inf), unmerged]).argmax(0)
    source[centres] = rows
    return torch.cat([merged, extra]).to(features.dtype), source


def nearest(affinity: Tensor, count: int) -> Tensor:
    """Mask [m, P] of the `count` highest of each row above -inf; the earlier first where they tie."""
    least = affinity.topk(min(count, affinity.shape[1]), dim=1, sorted=False).values.amin(1, keepdim=True)
    above, level = affinity > least, affinity == least
    room = count - above.sum(1, keepdim=True)
    return (above | level & (level.cumsum(1) <= room)) & (affinity > -torch.inf)
