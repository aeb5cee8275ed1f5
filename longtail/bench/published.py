"""Selection in the form that the papers' released code gives it: what `bench` holds ours against, and nothing else.

Each function is written anew from a description of what that code does, with what it wastes left in: whole attention
maps, a Python loop over centres with concatenations, sets asked element by element, copies of what is kept.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 32


def longtail(query: Tensor, key: Tensor, features: Tensor, alpha: float) -> Tensor:
    """Tokens [m, D] of the main paper's stage 1, whose code was never released: the whole map, its knee in a loop."""
    similarity, order = _cls_attention(query, key).sort(descending=True, stable=True)
    d, n = similarity.tolist(), len(similarity)
    height = [(n - i) * (d[0] - d[i - 1]) / (d[0] - d[-1]) for i in range(1, n)]
    count = max(int(alpha * (n - 1 - height.index(max(height)))), 1)
    return features[order[:count].sort().values]


def prumerge(query: Tensor, key: Tensor, features: Tensor) -> Tensor:
    """Tokens [m+1, D] of PruMerge from queries and keys [1+N, D] and features [N, D]: the whole map for its CLS row."""
    attention = _cls_attention(query, key)
    chosen = attention.topk(_outliers(attention)).indices
    return _merged(features, key[1:], attention, chosen)


def prumerge_plus(query: Tensor, key: Tensor, features: Tensor) -> Tensor:
    """Tokens of PruMerge+: as `prumerge`, with the patches of a grid that are not among the outliers."""
    attention = _cls_attention(query, key)
    n, count = len(attention), _outliers(attention)
    chosen = attention.topk(count).indices
    stride = int(int(1 / (count / n)) / 3)
    grid = torch.arange(0, n - 1, stride, device=chosen.device)
    added = [place for place in grid if place not in chosen]
    chosen = torch.cat([chosen, torch.tensor(added, dtype=torch.long, device=chosen.device)])
    return _merged(features, key[1:], attention, chosen)


def recoverable(query: Tensor, key: Tensor, features: Tensor, text: Tensor) -> Tensor:
    """Tokens of Recoverable Compression, `text` [N] being its text similarity: three local outlier factors, one loop.

    The slips of the code are part of it: centres are counted by the channels, keys are those of the first patches.
    """
    attention, (n, width) = _cls_attention(query, key), features.shape
    share = local_outliers(attention.tolist(), 20) / n
    seen = attention.topk(int(n * share)).indices
    others = text.clone()
    others[seen] = text.min()
    share = local_outliers(others.tolist(), 20) / n
    found = others.topk(int((n - len(seen)) * share)).indices
    main = torch.cat([seen, found]).sort().values
    left = torch.ones(n, dtype=torch.bool, device=main.device)
    left[main] = False
    rest = left.nonzero().flatten()
    share = local_outliers(attention[rest].tolist(), 10) / len(rest)
    centres = attention[rest].topk(min(int(width * share), len(rest))).indices
    if not len(centres):
        return features[main]
    merged = _merged(features[rest], key[1:][: len(rest)], attention[rest], centres, 50 * text[rest])
    return torch.cat([features[main], merged])


def local_outliers(values: list[float], k: int, threshold: float = 1.5) -> int:
    """How many of a list of numbers have a local outlier factor above the threshold, by its definition, every pair."""
    x = torch.from_numpy(np.array(values))
    apart = (x[:, None] - x[None]).abs().fill_diagonal_(torch.inf)
    distance, near = apart.topk(min(k, len(x) - 1), dim=1, largest=False)
    reach = torch.maximum(distance, distance[:, -1][near])
    density = 1 / (reach.mean(1) + 1e-10)
    return int(((density[near] / density[:, None]).mean(1) > threshold).sum())


def visionzip(maps: Tensor, hidden: Tensor, key: Tensor, dominant: int, contextual: int) -> Tensor:
    """Tokens of VisionZip from a layer's attention maps [H, 1+N, 1+N], states and keys [1+N, D]: masks and selects."""
    (count, width), heads = hidden.shape, len(maps)
    metric = key.view(count, heads, -1).mean(1)
    top = maps[:, 0, 1:].sum(0).topk(dominant - 1).indices + 1
    top = torch.cat([top.new_zeros(1), top])
    left = torch.ones(count, dtype=torch.bool, device=hidden.device).scatter(0, top, False)
    main = hidden.masked_select(~left[:, None]).view(dominant, width)
    metric = functional.normalize(metric[left].view(count - dominant, -1), dim=-1)
    hidden = hidden.masked_select(left[:, None]).view(count - dominant, width)
    step = max(1, len(hidden) // contextual)
    target = torch.arange(0, len(hidden), step, device=hidden.device)[:contextual]
    joins = ~torch.isin(torch.arange(len(hidden), device=hidden.device), target)
    similarity = metric[joins] @ metric[target].T
    assigned = torch.zeros_like(similarity).scatter(1, similarity.argmax(1, keepdim=True), 1)
    sizes = assigned.sum(0).clamp(min=1)[:, None]
    return torch.cat([main, hidden[target] + assigned.T @ hidden[joins] / sizes])


def tome(hidden: Tensor, key: Tensor, heads: int, r: int) -> Tensor:
    """Tokens [1+N-r, D] behind one layer of ToMe, CLS first: bipartite matching, then states and sizes scattered."""
    metric = functional.normalize(key.view(len(key), heads, -1).mean(1), dim=-1)
    scores = metric[::2] @ metric[1::2].T
    scores[0] = -torch.inf
    best, partner = scores.max(-1)
    order = best.argsort(descending=True)
    alone, merged = order[r:].sort().values, order[:r]
    size = hidden.new_ones(len(hidden), 1)

    def merge(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        stay, leave, into = (index[:, None].expand(-1, x.shape[1]) for index in (alone, merged, partner[merged]))
        return torch.cat([a.gather(0, stay), b.scatter_reduce(0, into, a.gather(0, leave), "sum")])

    return merge(hidden * size) / merge(size)


def divprune(distance: Tensor, count: int) -> Tensor:
    """Indices that DivPrune picks from a distance matrix [N, N]: all rows picked so far gathered for each pick."""
    picked = torch.zeros(count, dtype=torch.long, device=distance.device)
    picked[0] = distance.topk(2, dim=0, largest=False).values[1].argmax()
    for i in range(1, count):
        rows = distance.index_select(0, picked.index_select(0, torch.arange(i, device=distance.device)))
        picked[i] = rows.min(0).values.argmax()
    return picked


def fastv(attention: Tensor, first: int, visual: int, count: int) -> Tensor:
    """Visual tokens that FastV keeps, from a layer's attention [H, T, T]: the mean of all of it for its last row."""
    return attention.mean(0)[-1][first : first + visual].topk(count).indices


class H2O:
    """One layer's cache in H2O's real-drop form: concatenate, mask, and copy all that stays, at every step."""

    def __init__(self, key: Tensor, value: Tensor, score: Tensor, heavy: int, recent: int):
        """Keys and values [1, H, S, d] and what the entries have received so far [H, S]."""
        self.key, self.value, self.score, self.heavy, self.recent = key, value, score, heavy, recent

    def enter(self, key: Tensor, value: Tensor):
        """A newcomer [1, H, 1, d]."""
        self.key, self.value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights [1, H, 1, S] of its query, as a whole, and what they make of the values."""
        weights = (query @ self.key.transpose(2, 3) / query.shape[-1] ** 0.5).float().softmax(-1)
        return weights, weights @ self.value

    def held(self) -> Tensor:
        """What is in the cache, in order of arrival."""
        return torch.stack([self.key[0], self.value[0]])

    def leave(self, weights: Tensor):
        """Entries receive the newcomer's weights; the one of each head that received least leaves."""
        received = weights.sum(0).sum(1)
        received[:, :-1] += self.score
        self.score = received
        heads, count = self.score.shape
        if count <= self.heavy + self.recent:
            return
        heavy = self.score[:, : count - self.recent].topk(self.heavy, dim=-1).indices.sort().values
        recent = torch.arange(count - self.recent, count, device=heavy.device).repeat(heads, 1)
        mask = torch.zeros(self.score.shape, dtype=torch.bool).to(heavy.device)
        mask = mask.scatter(-1, torch.cat([heavy, recent], dim=-1), True)
        self.key = self.key.squeeze(0)[mask].view(1, heads, -1, self.key.shape[-1])
        self.value = self.value.squeeze(0)[mask].view(1, heads, -1, self.value.shape[-1])
        self.score = self.score[mask].view(heads, -1)


def _cls_attention(query: Tensor, key: Tensor) -> Tensor:
    """CLS attention [N] of full width, out of the map of all queries."""
    return (query @ key.T * key.shape[1] ** -0.5).softmax(-1)[0, 1:]


def _outliers(attention: Tensor) -> int:
    """How many lie above the upper fence, on the host."""
    values = attention.float().cpu().numpy()
    low, high = np.percentile(values, [25, 75])
    return int((values > high + 1.5 * (high - low)).sum())


def _merged(features: Tensor, key: Tensor, attention: Tensor, chosen: Tensor, pull: Tensor | None = None) -> Tensor:
    """Each chosen patch with its nearest among the others, one after another, and one token for what was not chosen.

    A batch of one image, as the code has it: every tensor carries the axis, and it is looped over too.
    """
    unit, features, attention = functional.normalize(key, dim=-1)[None], features[None], attention[None]
    tokens = features.new_zeros(1, len(chosen) + 1, features.shape[2])
    for b in range(len(features)):
        for i, centre in enumerate(chosen.tolist()):
            keys, states, weight = (
                torch.cat([x[b, :centre].unsqueeze(0), x[b, centre + 1 :].unsqueeze(0)], dim=1)
                for x in (unit, features, attention)
            )
            affinity = torch.bmm(unit[b, centre].unsqueeze(0).unsqueeze(0), keys.transpose(1, 2))
            if pull is not None:
                affinity = affinity + torch.cat([pull[:centre], pull[centre + 1 :]])
            near = affinity.topk(min(NEIGHBOURS, keys.shape[1]), dim=2).indices.squeeze(0).squeeze(0)
            mixed = states[:, near, :] * weight[:, near].unsqueeze(-1)
            tokens[b, i, :] = features[b, centre] + mixed.sum(1).squeeze(0)
        left = torch.ones(features.shape[1], dtype=torch.bool, device=features.device)
        left[chosen] = False
        tokens[b, -1, :] = (features[b, left] * attention[b, left].unsqueeze(-1)).sum(0)
    return tokens[0]
