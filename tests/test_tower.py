"""Methods inside the vision tower, against plain loops: explicit softmax attention, the method, the MLP, in turn.

The references are written from the papers' descriptions, token by token, and share nothing with the engine but weights.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import random_llava
from torch import nn
from transformers.models.clip.modeling_clip import CLIPVisionModel

import longtail
from longtail.models import miniatures
from longtail.models.llava import Llava
from longtail.reducer import REDUCERS
from longtail.tokens import Reduced, TowerLayer, TowerView, VisualTokens

QUESTION = "What is here?"


# ---- the tower in plain PyTorch


class Tokens:
    """The states [t, D], CLS first, and for every other token the patch it stands on (-1: none) and those it speaks
    for."""

    def __init__(self, states, stands, speaks):
        self.states, self.stands, self.speaks = states, stands, speaks
        assert len(states) == 1 + len(stands) == 1 + len(speaks)

    def sizes(self):
        return [1] + [max(len(patches), 1) for patches in self.speaks]

    def take(self, rows):
        """The tokens of these rows (row 0 is CLS), in this order."""
        others = rows[1:]
        assert rows[0] == 0
        return Tokens(self.states[rows], [self.stands[i - 1] for i in others], [self.speaks[i - 1] for i in others])


class Layer:
    """What one attention layer made: its weights [H, t, t], keys [t, H, d], values [t, D] and residual states."""

    def __init__(self, block, states, sizes):
        attention, x = block.self_attn, block.layer_norm1(states)
        heads, t = attention.num_heads, len(states)
        q, k, v = (p(x).view(t, heads, -1) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        logits = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        if sizes is not None:
            logits = logits + torch.tensor([math.log(s) for s in sizes])
        self.weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        mixed = torch.einsum("hij,jhd->ihd", self.weights, v).reshape(t, -1)
        self.keys, self.values, self.states = k, v.reshape(t, -1), states + attention.out_proj(mixed)


@torch.inference_mode()
def plain_tower(model, picture, step, proportional=False, begin=lambda tokens: tokens):
    """The tower up to the layer LLaVA reads, `step(index, layer, tokens) -> tokens` between attention and MLP."""
    pixels = model.prompt(picture, QUESTION).pixels
    states = model.tower.pre_layrnorm(model.tower.embeddings(pixels))[0]
    n = len(states) - 1
    tokens = begin(Tokens(states, list(range(n)), [{p} for p in range(n)]))
    for i, block in enumerate(model.tower.encoder.layers[:-1]):
        layer = Layer(block, tokens.states, tokens.sizes() if proportional else None)
        tokens = step(i, layer, Tokens(layer.states, tokens.stands, tokens.speaks))
        tokens.states = tokens.states + block.mlp(block.layer_norm2(tokens.states))
    return tokens


def at_depth(layer, model):
    """Index of a layer of 24 in this tower: the same fraction of the way to the last."""
    return math.floor(layer * (len(model.tower.encoder.layers) - 1) / 23)


def cosine(a, b):
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def mean_keys(layer):
    return layer.keys.mean(1)


def same(answer, tokens):
    """The answer's bookkeeping is that of the reference, and its features are those states."""
    reduced = answer.reduced[0]
    n = len(reduced.source)
    source = [-1] * n
    for token, patches in enumerate(tokens.speaks):
        for patch in patches:
            assert source[patch] == -1, "a patch has one speaker"
            source[patch] = token
    stood = set(tokens.stands)
    role = ["kept" if p in stood else "dropped" if source[p] < 0 else "merged" for p in range(n)]
    assert reduced.keep.tolist() == tokens.stands
    assert reduced.source.tolist() == source
    assert reduced.role.tolist() == role
    assert answer.tokens.visual == len(tokens.stands)
    torch.testing.assert_close(reduced.features, tokens.states[1:], rtol=1e-4, atol=1e-4)


def ask(model, picture, reducer, **options):
    return longtail.answer(model, picture, QUESTION, reducer, **{"max_new_tokens": 1, **options})


def built(tower_layers, patch=8, width=32):
    """A random LLaVA with its processor, in memory."""
    model = random_llava(tower_layers)  # which seeds
    if patch != 8:
        torch.manual_seed(0)
        config = model.config.vision_config
        config.patch_size, config.hidden_size, config.intermediate_size = patch, width, width
        config.num_attention_heads = 2
        model.model.vision_tower = CLIPVisionModel(config)
        model.model.multi_modal_projector.linear_1 = nn.Linear(width, miniatures.WIDTH)
        model.config.text_config.max_position_embeddings = 1024
    with torch.no_grad():  # biases and norms that are not those of a fresh model
        for weight in model.model.vision_tower.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape) * 0.3)
    return Llava(model, miniatures.processor("llava-1.5", patch))


@pytest.fixture(scope="module")
def deep():
    """24 layers, as CLIP ViT-L has, over 6 x 6 patches."""
    return built(24)


@pytest.fixture(scope="module")
def wide():
    """24 thin layers over 24 x 24 patches."""
    return built(24, patch=2, width=16)


@pytest.fixture(params=["llava", "deep"])
def model(request):
    """5 layers, of which 4 run, or 24, of which 23 run."""
    return request.getfixturevalue(request.param)


def running(model):
    return len(model.tower.encoder.layers) - 1


def test_the_reference_tower_is_the_tower(model, picture):
    tokens = plain_tower(model, picture, lambda i, layer, tokens: tokens)
    same(ask(model, picture, longtail.Full()), tokens)


def test_layers_read_behind_the_features_are_not_trimmed(llava, picture):
    """Whoever also reads the tower's last output gets the same tokens: trimming ends where LLaVA reads."""

    class Reader(REDUCERS["ToMe"]):
        def layers_read(self):
            return (23, 24)

    plain, reading = (ask(llava, picture, reducer(r=3)) for reducer in (REDUCERS["ToMe"], Reader))
    assert torch.equal(plain.reduced[0].features, reading.reduced[0].features)
    assert len(reading.visual[0].layer(24).hidden) == 1 + reading.tokens.visual == 25


# ---- a view by hand


def view(features, key=None, heads=1, value=None, weights=None, index=6, depth=24, place="between", before=None):
    """A TowerView over the features [N, D] of patches: keys and values [1+N, .], attention weights [H, 1+N, 1+N]."""
    features = torch.as_tensor(features)
    n, width = features.shape
    key = torch.zeros(1 + n, width) if key is None else torch.as_tensor(key)
    value = torch.ones(1 + n, width) if value is None else torch.as_tensor(value)
    weights = torch.full((heads, 1 + n, 1 + n), 1 / (1 + n)) if weights is None else torch.as_tensor(weights)
    hidden = torch.cat([torch.zeros(1, width, dtype=features.dtype), features])
    patches = n if before is None else len(before.source)
    return TowerView(
        index=index,
        depth=depth,
        running=depth - 1,
        place=place,
        visual=VisualTokens(features, hidden[0], (1, patches)),
        read=lambda: TowerLayer(hidden, key[:1], key, heads),
        value=lambda: value,
        attention=lambda rows: weights[:, rows].float(),
        before=before,
    )


def told(reduced):
    return reduced.keep.tolist(), reduced.source.tolist(), reduced.role.tolist()


def rows_of_cls(*rows, n):
    """Attention weights [H, 1+N, 1+N] of which CLS's row is given, head by head, over its patches."""
    weights = torch.full((len(rows), 1 + n, 1 + n), 1 / (1 + n))
    for head, row in enumerate(rows):
        weights[head, 0] = torch.tensor([1 - sum(row), *row])
    return weights


def degrees(*angles):
    """CLS's key, then one unit key for each angle."""
    return torch.tensor([[0.3, 0.2]] + [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


# ---- ToMe


def tome_step(r, last, order):
    def step(i, layer, tokens):
        t, keys, sizes = len(tokens.states), mean_keys(layer), tokens.sizes()
        a, b = range(0, t, 2), range(1, t, 2)
        edges = []
        for row in a:
            if row == 0:
                continue  # CLS proposes to nobody
            best = max(b, key=lambda other: (cosine(keys[row], keys[other]), -other))
            edges.append((-cosine(keys[row], keys[best]), row, best))
        merged = {row: best for _, row, best in sorted(edges)[: min(r, (t - 1) // 2)]}
        rows = [row for row in a if row not in merged] + list(b)
        states, stands, speaks = [], [], []
        for row in rows:
            group = [row] + [source for source, best in merged.items() if best == row]
            weight = sum(sizes[i] for i in group)
            states.append(sum(sizes[i] * tokens.states[i] for i in group) / weight)
            if row:
                stands.append(tokens.stands[row - 1])
                speaks.append(set().union(*(tokens.speaks[i - 1] for i in group)))
        tokens = Tokens(torch.stack(states), stands, speaks)
        if i == last and order == "raster":
            tokens = tokens.take([0] + [1 + j for j in sorted(range(len(stands)), key=lambda j: stands[j])])
        return tokens

    return step


@pytest.mark.parametrize("order", ["raster", "released"])
@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("r", [1, 3, 17])
def test_tome_is_the_plain_loop(model, picture, r, weigh, order):
    answer = ask(model, picture, longtail.make("ToMe", r=r, weigh=weigh, order=order))
    tokens = plain_tower(model, picture, tome_step(r, running(model) - 1, order), weigh)
    same(answer, tokens)
    if order == "raster":
        assert tokens.stands == sorted(tokens.stands)
    if r == 1:
        assert answer.tokens.visual == 36 - running(model)


def test_tome_orders_hand_over_the_same_tokens(llava, picture):
    raster, released = (
        ask(llava, picture, longtail.make("ToMe", r=3, order=o)).reduced[0] for o in ("raster", "released")
    )
    assert released.keep.tolist() != sorted(released.keep.tolist())
    back = released.keep.argsort()
    assert torch.equal(released.keep[back], raster.keep)
    assert torch.equal(released.features[back], raster.features)


@pytest.mark.parametrize("r, left", [(22, 70), (17, 185), (20, 116), (0, 576)])
def test_tome_leaves_576_less_23_r(wide, picture, r, left):
    answer = ask(wide, picture, longtail.make("ToMe", r=r))
    assert answer.tokens.patches == 576 and answer.tokens.visual == left == 576 - 23 * r
    assert answer.reduced[0].size().sum() == 576  # nobody is dropped


def test_tome_by_hand():
    """Patches at 0, 5, 90, 92, 200 and 203 degrees: positions 1..6, so B = patches 0, 2, 4 and A = CLS, 1, 3, 5."""
    features = torch.tensor([[1.0], [3.0], [10.0], [20.0], [50.0], [70.0]])
    key = degrees(0, 5, 90, 92, 200, 203)
    reduced = longtail.make("ToMe", r=2, order="released").trim(view(features, key, index=3))
    # edges: 1 -> 0 (5 degrees), 3 -> 2 (2 degrees), 5 -> 4 (3 degrees): the two best are 3 and 5
    assert told(reduced) == ([1, 0, 2, 4], [1, 0, 2, 2, 3, 3], ["kept"] * 3 + ["merged", "kept", "merged"])
    assert reduced.features.flatten().tolist() == [3, 1, 15, 60]
    # a second layer sees 1, 0, 2, 4: B = 1 and 2, A = CLS, 0, 4; sizes weigh
    key = degrees(5, 0, 91, 201.5)
    again = longtail.make("ToMe", r=1, order="released").trim(view(reduced.features, key, index=4, before=reduced))
    assert told(reduced.then(again))[:2] == ([4, 1, 2], [1, 1, 2, 2, 0, 0])
    assert again.features.flatten().tolist() == [60, 2, 15]
    # into a token of two patches: (2 x 15 + 60 x 2) / 4
    key = degrees(60, 0, 91, 92)
    again = longtail.make("ToMe", r=1, order="released").trim(view(reduced.features, key, index=4, before=reduced))
    assert told(reduced.then(again))[:2] == ([0, 1, 2], [0, 1, 2, 2, 2, 2])
    assert again.features.flatten().tolist() == [1, 3, 37.5]


def test_tome_compares_the_mean_of_the_heads_keys():
    """Two heads of width 2: head by head patch 1 is like patch 2, in the mean it is like patch 0."""
    key = torch.tensor([[1.0, 0, 0, 1], [1, 0, 1, 0], [3, 1, -1, -1], [-3, 1, 1, 1]])  # mean: (1,0), (1,0), (-1,1)
    key[3] = torch.tensor([3.0, 1, -3, -1])  # patch 2: mean (0, 0); of width 4 it is patch 1's nearest
    reduced = longtail.make("ToMe", r=1, order="released").trim(view(torch.eye(3), key, heads=2, index=3))
    assert told(reduced)[:2] == ([0, 2], [0, 0, 1])


def test_tome_on_flat_states_takes_the_first():
    """All alike: A's first patches merge, all into B's first."""
    reduced = longtail.make("ToMe", r=2, order="released").trim(view(torch.ones(6, 2), torch.ones(7, 2), index=3))
    assert told(reduced)[:2] == ([5, 0, 2, 4], [1, 1, 2, 1, 3, 0])
    assert torch.equal(reduced.features, torch.ones(4, 2))
    last = longtail.make("ToMe", r=2).trim(view(torch.ones(6, 2), torch.ones(7, 2), index=22))
    assert told(last)[:2] == ([0, 2, 4, 5], [0, 0, 1, 0, 2, 3])


# ---- CrossGET


def crossget_begin(tokens):
    """The cross token, a copy of CLS, behind the patches."""
    return Tokens(torch.cat([tokens.states, tokens.states[:1]]), [*tokens.stands, -1], [*tokens.speaks, set()])


def crossget_step(r):
    def step(i, layer, tokens):
        t, keys, sizes = len(tokens.states), mean_keys(layer), tokens.sizes()
        cross, patches = t - 1, range(1, t - 1)
        alike = {(a, b): cosine(keys[min(a, b)], keys[max(a, b)]) for a in patches for b in patches if a != b}
        highest = {a: max((alike[a, b] for b in patches if a != b), default=-math.inf) for a in patches}
        ranked = sorted(patches, key=lambda a: (-highest[a], a))
        behind = {a: ranked[place + 1 :] for place, a in enumerate(ranked)}
        weights = layer.weights.mean(0)
        importance = {a: float(weights[:, a].mean() + weights[cross, a]) for a in patches}
        cost = {a: importance[a] - max(alike[a, b] for b in behind[a]) for a in ranked[:-1]}
        sources = sorted(cost, key=lambda a: (cost[a], a))[:r]
        into = {}
        for a in sources:
            into[a] = max((b for b in behind[a] if b not in sources), key=lambda b: (alike[a, b], -b))
        rows = [row for row in range(t) if row not in sources]
        states, speaks = [], []
        for row in rows:
            group = [row] + [a for a in sources if into[a] == row]
            if len(group) == 1:
                states.append(tokens.states[row])
            else:
                share = [sizes[a] * math.exp(importance[a]) for a in group]
                states.append(sum(s * tokens.states[a] for s, a in zip(share, group, strict=True)) / sum(share))
            if row:
                speaks.append(set().union(*(tokens.speaks[a - 1] for a in group)))
        return Tokens(torch.stack(states), [tokens.stands[row - 1] for row in rows[1:]], speaks)

    return step


@pytest.mark.parametrize("r", [0, 1, 3, 20])
def test_crossget_is_the_plain_loop(model, picture, r):
    tokens = plain_tower(model, picture, crossget_step(r), True, crossget_begin)
    answer = ask(model, picture, longtail.make("CrossGET", r=r))
    same(answer, tokens)
    assert answer.tokens.visual == max(36 - running(model) * r, 1) + 1  # one patch always stays
    kept = answer.reduced[0].keep.tolist()
    assert kept[-1] == -1 and kept[:-1] == sorted(kept[:-1])


def test_crossgets_cross_token_is_the_cls_token(model, picture):
    answer = ask(model, picture, longtail.make("CrossGET", r=1))
    torch.testing.assert_close(answer.reduced[0].features[-1], answer.visual[0].cls, rtol=1e-4, atol=1e-4)


def test_crossget_leaves_278(wide, picture):
    answer = ask(wide, picture, longtail.make("CrossGET"))
    assert answer.tokens.visual == 278 == 576 - 13 * 23 + 1
    assert answer.reduced[0].source.min() >= 0  # nobody is dropped


def crossed(patches):
    """What is known where the cross token, the last, was added to so many patches."""
    return Reduced(
        torch.zeros(patches + 1, 1),
        torch.tensor([*range(patches), -1]),
        torch.arange(patches),
        np.array(["kept"] * patches),
    )


def received(n, importance):
    """Uniform weights [1, 1+N, 1+N] but for what patches receive from the last row, the cross token."""
    weights = torch.full((1, 1 + n, 1 + n), 0.0)
    for position, value in importance.items():
        weights[0, -1, position] = value
    return weights


def test_crossget_by_hand():
    """Patches at 0, 10, 12, 40 and 100 degrees. Best cosines: 1 and 2 (2 degrees), 0 (10), 3 (28), 4 (60): ranked 1, 2,
    0, 3, 4. Each looks behind itself: 1 -> 2 (2), 2 -> 0 (12), 0 -> 3 (40), 3 -> 4 (60)."""
    features = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [99.0]])
    key = torch.cat([degrees(0, 10, 12, 40, 100), torch.tensor([[0.3, 0.2]])])

    def trimmed(r, importance):
        tower = view(features, key, weights=received(6, importance), index=3, before=crossed(5))
        return crossed(5).then(longtail.make("CrossGET", r=r).trim(tower))

    one = trimmed(1, {})
    assert told(one)[:2] == ([0, 2, 3, 4, -1], [0, 1, 1, 2, 3])
    assert one.features.flatten().tolist() == pytest.approx([1, 3, 8, 16, 99])
    # patch 1 important: 2 goes, to 0 that is behind it, and not to its twin 1 that is before it
    two = trimmed(1, {2: 1.0})
    assert told(two)[:2] == ([0, 1, 3, 4, -1], [0, 1, 0, 2, 3])
    # both go: 1 cannot go to 2, a source itself; 0 stays and is the nearest behind
    both = trimmed(2, {})
    assert told(both)[:2] == ([0, 3, 4, -1], [0, 0, 0, 1, 2])
    assert both.features.flatten().tolist() == pytest.approx([7 / 3, 8, 16, 99])
    # weights: the softmax of importance, i = mean over the 7 queries + what the cross token gives
    important = trimmed(1, {3: 0.5})
    of_two = math.exp(0.5 + 0.5 / 7)
    assert told(important)[:2] == ([0, 2, 3, 4, -1], [0, 1, 1, 2, 3])
    assert important.features[1].item() == pytest.approx((2 + 4 * of_two) / (1 + of_two))


def test_crossget_weighs_sizes():
    """Patch 1 speaks for three patches already: three quarters of the merged token at equal importance."""
    before = dataclasses.replace(
        crossed(5), features=torch.zeros(4, 1), keep=torch.tensor([0, 1, 4, -1]), source=torch.tensor([0, 1, 1, 1, 2])
    )
    key = torch.cat([degrees(0, 1, 90), torch.tensor([[0.3, 0.2]])])
    tower = view([[4.0], [8.0], [5.0], [99.0]], key, weights=torch.zeros(1, 5, 5), index=4, before=before)
    reduced = longtail.make("CrossGET", r=1).trim(tower)
    assert reduced.features.flatten().tolist() == pytest.approx([7, 5, 99])
    assert before.then(reduced).source.tolist() == [0, 0, 0, 0, 1]


def test_crossget_on_flat_states_takes_the_first():
    tower = view(torch.ones(6, 2), torch.ones(7, 2), weights=torch.zeros(1, 7, 7), index=3, before=crossed(5))
    reduced = crossed(5).then(longtail.make("CrossGET", r=2).trim(tower))
    assert told(reduced)[:2] == ([2, 3, 4, -1], [0, 0, 0, 1, 2])


# ---- EViT


def evit_step(model, keep, variant):
    acting = [at_depth(layer, model) for layer in (6, 12, 18)]
    assert len(set(acting)) == 3

    def step(i, layer, tokens):
        if i not in acting:
            return tokens
        others = range(1, len(tokens.states))
        score = {j: sum(float(head[0, j]) for head in layer.weights) / len(layer.weights) for j in others}
        left = math.ceil(keep * len(others))
        best = sorted(others, key=lambda j: (-score[j], j))[:left]
        rest = [j for j in others if j not in best]
        kept = tokens.take([0, *sorted(best)])
        if not rest:
            return kept
        fused = sum(score[j] * tokens.states[j] for j in rest)
        if variant == "paper":
            fused = fused / sum(score[j] for j in rest)
        speaks = set().union(*(tokens.speaks[j - 1] for j in rest))
        return Tokens(torch.cat([kept.states, fused[None]]), [*kept.stands, -1], [*kept.speaks, speaks])

    return step


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("keep", [0.05, 0.31, 0.7, 0.97, 1.0])
def test_evit_is_the_plain_loop(model, picture, keep, variant):
    answer = ask(model, picture, longtail.make("EViT", keep=keep, variant=variant))
    same(answer, plain_tower(model, picture, evit_step(model, keep, variant)))
    left = 36
    for _ in range(3):
        kept = math.ceil(keep * left)
        left = kept + (kept < left)
    assert answer.tokens.visual == left


def test_evit_by_hand():
    features = torch.tensor([[1.0, 0], [2, 0], [4, 0], [8, 1], [16, 1]])
    weights = rows_of_cls([0.1, 0.2, 0.0, 0.3, 0.1], [0.1, 0.0, 0.2, 0.3, 0.3], n=5)  # mean .1 .1 .1 .3 .2
    keep, source, role = [0, 3, 4, -1], [0, 3, 3, 1, 2], ["kept", "merged", "merged", "kept", "kept"]
    reduced = longtail.make("EViT", keep=0.5).trim(view(features, weights=weights, heads=2))
    assert told(reduced) == (keep, source, role)  # ceil(2.5) stay: 3, 4 and the first of equals
    assert reduced.features[-1].tolist() == pytest.approx([0.1 * 2 + 0.1 * 4, 0])
    assert torch.equal(reduced.features[:-1], features[[0, 3, 4]])
    reduced = longtail.make("EViT", keep=0.5, variant="paper").trim(view(features, weights=weights, heads=2))
    assert told(reduced) == (keep, source, role)
    assert reduced.features[-1].tolist() == pytest.approx([3, 0])


@pytest.mark.parametrize("index, place", [(5, "between"), (7, "between"), (22, "between"), (6, "entering")])
def test_evit_acts_at_three_layers_between_attention_and_mlp(index, place):
    for name in ("EViT", "ATS"):
        reducer = longtail.make(name, **({"first": 20} if name == "ATS" else {}))
        if (name, index) != ("ATS", 22):
            assert reducer.trim(view(torch.ones(5, 2), index=index, place=place)) is None


# ---- ATS


def ats_draw(significance, samples):
    """Which of the patches are drawn: ascending, cumulated, stretched to 0..1, one draw a point, the nearest entry."""
    order = sorted(range(len(significance)), key=lambda j: (significance[j], j))
    total, cdf = 0.0, []
    for j in order:
        total += significance[j] / sum(significance)
        cdf.append(total)
    cdf = [(c - cdf[0]) / (cdf[-1] - cdf[0]) for c in cdf]
    start, count = min(c for c in cdf if c > 0), samples - 1
    points = [start + (1 - start) * i / (count - 1) for i in range(count)]
    return sorted({order[min(range(len(cdf)), key=lambda j: (abs(cdf[j] - point), j))] for point in points})


def ats_step(model, samples, first):
    def step(i, layer, tokens):
        if i < at_depth(first, model) or len(tokens.stands) == 1:
            return tokens
        given = layer.weights[:, 0].sum(0)
        significance = [float(given[j]) * float(layer.values[j].norm()) for j in range(1, len(tokens.states))]
        return tokens.take([0] + [1 + j for j in ats_draw(significance, samples)])

    return step


@pytest.mark.parametrize("first", [0, 6, 22])
@pytest.mark.parametrize("samples", [3, 9, 20, 288])
def test_ats_is_the_plain_loop(model, picture, samples, first):
    answer = ask(model, picture, longtail.make("ATS", samples=samples, first=first))
    tokens = plain_tower(model, picture, ats_step(model, samples, first))
    same(answer, tokens)
    assert 1 <= answer.tokens.visual <= min(samples - 1, 36)
    assert tokens.stands == sorted(tokens.stands)


def test_ats_drops_rows_of_attention_and_no_keys(llava, picture):
    """A tower that never sees the dropped patches in the layer that samples is another one."""
    reducer = longtail.make("ATS", samples=9, first=22)
    kept = ask(llava, picture, reducer).reduced[0]
    assert len(kept.features) < 36
    states = llava.tower.pre_layrnorm(llava.tower.embeddings(llava.prompt(picture, QUESTION).pixels))
    rows = torch.cat([torch.tensor([0]), kept.keep + 1])
    with torch.inference_mode():
        for i, block in enumerate(llava.tower.encoder.layers[:-1]):
            entering = states[:, rows] if i == 3 else states
            states = block(states, attention_mask=None)
        blind = llava.tower.encoder.layers[3](entering, attention_mask=None)
    torch.testing.assert_close(kept.features, states[0, rows[1:]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(kept.features, blind[0, 1:], rtol=1e-2, atol=1e-2)


def ats_view(significance, **options):
    """A view whose attention, summed over two heads, times the norm of the values is this significance."""
    n = len(significance)
    norms = [4.0, 8.0, 1.0, 2.0, 16.0, 0.5][:n]
    share = [s / norm / 256 for s, norm in zip(significance, norms, strict=True)]
    weights = rows_of_cls([0.25 * s for s in share], [0.75 * s for s in share], n=n)
    value = torch.tensor([[100.0, 0.0]] + [[0.0, -norm] for norm in norms])
    return view(torch.arange(2.0 * n).view(n, 2), value=value, weights=weights, heads=2, **options)


@pytest.mark.parametrize(
    "significance, samples, keep",
    [
        # ascending 1 2 3 6 8 are patches 0 3 2 4 1; cumulated 1 3 6 12 20; stretched (0 2 5 11 19) / 19
        ([1, 8, 3, 2, 6], 3, [1, 3]),  # points 2/19 and 1
        ([1, 8, 3, 2, 6], 4, [1, 3, 4]),  # 2/19, 10.5/19, 1
        ([1, 8, 3, 2, 6], 5, [1, 2, 3, 4]),  # (2, 7.67, 13.33, 19)/19: 7.67 is nearer to 5 than to 11
        # cumulated 1 2 3 4 100; stretched (0 1 2 3 99)/99; points (1 25.5 50 74.5 99)/99: 1, 3, 3, 4, 4
        ([1, 1, 1, 1, 96], 6, [1, 3, 4]),
        # flat: stretched 0 .25 .5 .75 1; points from .25 on, .25 apart, or the two ends alone
        ([2, 2, 2, 2, 2], 5, [1, 2, 3, 4]),
        ([2, 2, 2, 2, 2], 3, [1, 4]),
        # cumulated and stretched 0 0 0 .25 1: the smallest positive one is patch 3's
        ([0, 0, 0, 1, 3], 3, [3, 4]),
        ([5, 0, 0, 0, 0], 577, [0]),
    ],
)
def test_ats_by_hand(significance, samples, keep):
    reduced = longtail.make("ATS", samples=samples).trim(ats_view([float(s) for s in significance]))
    assert told(reduced)[0] == keep
    assert torch.equal(reduced.features, torch.arange(10.0).view(5, 2)[keep])
    assert [p for p in range(5) if reduced.source[p] < 0] == [p for p in range(5) if p not in keep]


@pytest.mark.parametrize("budget, keep", [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 2, 3, 4])])
def test_ats_at_a_budget_by_hand(budget, keep):
    """The first draw of enough patches, as above; one patch alone is the most significant of the draw of two."""
    assert longtail.make("ATS", budget=budget).trim(ats_view([1.0, 8, 3, 2, 6])).keep.tolist() == keep


def test_ats_at_a_budget_fills_up_where_draws_collapse():
    """One patch has it all: no number of points draws a second one, the others follow in the raster's order."""
    assert longtail.make("ATS", budget=3).trim(ats_view([0.0, 0, 0, 9, 0])).keep.tolist() == [0, 1, 3]


# ---- all of them: budgets, hard states, half precision

NAMES = ["ToMe", "CrossGET", "EViT", "ATS"]


@pytest.mark.parametrize("budget", [1, 2, 3, 20, 35, 36, 37, 500])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_is_exact(model, picture, name, budget):
    answer = ask(model, picture, longtail.make(name, budget=budget))
    assert answer.tokens.visual == min(budget, 37 if name == "CrossGET" else 36)
    stands = [patch for patch in answer.reduced[0].keep.tolist() if patch >= 0]
    assert stands == sorted(set(stands))


@pytest.mark.parametrize("name, budget", [("ToMe", 64), ("CrossGET", 192), ("EViT", 144), ("ATS", 128), ("ATS", 575)])
def test_a_budget_is_exact_on_576_patches(wide, picture, name, budget):
    reduced = ask(wide, picture, longtail.make(name, budget=budget)).reduced[0]
    assert len(reduced.features) == budget
    stands = [patch for patch in reduced.keep.tolist() if patch >= 0]
    assert stands == sorted(stands)


@pytest.mark.parametrize("name, extra", [("ToMe", 0), ("CrossGET", 1)])
def test_a_budget_spreads_its_merges_evenly(llava, picture, name, extra):
    by_r = ask(llava, picture, longtail.make(name, r=3)).reduced[0]
    by_budget = ask(llava, picture, longtail.make(name, budget=36 - 4 * 3 + extra)).reduced[0]
    assert torch.equal(by_r.features, by_budget.features) and torch.equal(by_r.source, by_budget.source)


def test_evit_at_a_budget_keeps_the_best_of_the_last_stage(llava, picture):
    """What stays beside the fused token is what CLS attended to most among those that came so far."""
    steps = []

    class Spy(REDUCERS["EViT"]):
        def trim(self, tower):
            reduced = super().trim(tower)
            if reduced is not None:
                steps.append((tower.attention(torch.tensor([0])).mean(0)[0, 1:], reduced))
            return reduced

    ask(llava, picture, Spy(budget=8))
    assert len(steps) == 3
    for score, reduced in steps:
        count = len(reduced.features) - 1
        best = sorted(sorted(range(len(score)), key=lambda j: (-float(score[j]), j))[:count])
        assert reduced.keep.tolist() == [*best, -1]
        assert (reduced.source == count).sum() == len(score) - count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hard_states_by_hand(name, dtype):
    """Flat, zero, peaked and single: finite, in the dtype given, nobody twice."""
    hard = {
        "flat": (torch.ones(7, 4), torch.full((1, 8, 8), 1 / 8)),
        "zero": (torch.zeros(7, 4), torch.zeros(1, 8, 8)),
        "one": (torch.eye(7, 4), torch.eye(8)[None].roll(3, -1)),
        "single": (torch.ones(1, 4), torch.full((1, 2, 2), 0.5)),
    }
    for features, weights in hard.values():
        features, n = features.to(dtype), len(features)
        states = torch.cat([torch.zeros(1, 4, dtype=dtype), features])
        for options in [{}, {"budget": 1}, {"budget": 3}] + [{"variant": "paper"}] * (name == "EViT"):
            tower = view(features, key=states, value=states, weights=weights)
            reduced = longtail.make(name, **options).trim(tower)
            if reduced is None:
                continue
            assert reduced.features.dtype == dtype and reduced.features.isfinite().all()
            stands = [p for p in reduced.keep.tolist() if p >= 0]
            assert len(set(stands)) == len(stands) and 1 <= len(reduced.features) <= n


@pytest.mark.parametrize("name", ["ToMe", "CrossGET"])
def test_sums_of_halves_do_not_overflow(name):
    features = torch.full((6, 2), 40000.0, dtype=torch.float16)
    reduced = longtail.make(name, r=2).trim(view(features, torch.ones(7, 2).half(), index=3, before=crossed(5)))
    assert len(reduced.features) == 4 and (reduced.features == 40000).all()


@pytest.fixture(scope="module")
def half(folder):
    return longtail.load(str(folder), dtype="bfloat16")


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_towers(half, picture, name):
    first, second = (ask(half, picture, longtail.make(name, budget=11)) for _ in range(2))
    assert first.tokens.visual == 11 and first.reduced[0].features.dtype == torch.bfloat16
    assert first.first_logits.isfinite().all()
    assert torch.equal(first.reduced[0].features, second.reduced[0].features)


def test_bfloat16_counts_follow_from_r(half, picture):
    assert ask(half, picture, longtail.make("ToMe", r=5)).tokens.visual == 36 - 4 * 5
    assert ask(half, picture, longtail.make("CrossGET", r=5)).tokens.visual == 36 - 4 * 5 + 1
