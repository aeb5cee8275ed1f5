"""PruMerge, PruMerge+ and Recoverable Compression, by hand and against plain loops written from their descriptions."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from longtail.reducer import make
from longtail.reducers.recoverable import outliers
from longtail.tokens import Question, TowerLayer, VisualTokens

# ---- visual tokens whose scores are given


def asked(score):
    """A question whose CLIP cosine with each patch is given."""
    return Question(torch.zeros(1), torch.zeros(1, 1), lambda visual: torch.as_tensor(score, dtype=torch.float32))


def given(attention, key=None, features=None, grid=None, text=None, preamble=None, dtype=torch.float32):
    """Visual tokens whose CLS attention in `layers[23]` is what is given (its sum below 1: CLS has the rest).

    The query is one-hot, so that column 0 of the keys holds the logits; `key` [N, d] fills the columns behind. Features
    are one-hot unless given: then a token's channels are the weights of the patches in it. Other layers are noise.
    """
    n = len(attention)
    width = 1 + (0 if key is None else len(key[0]))
    keys, query = torch.zeros(1 + n, width), torch.zeros(1, width)
    query[0, 0] = width**0.5
    keys[:, 0] = torch.tensor([1 - sum(attention), *attention], dtype=torch.float64).log()
    if key is not None:
        keys[1:, 1:] = torch.as_tensor(key, dtype=torch.float32)
    layers = {i: TowerLayer(noise(1 + n, 8, i), noise(1, 8, i + 50), noise(1 + n, 8, i + 99), 1) for i in range(23)}
    layers[23] = TowerLayer(torch.zeros(1 + n, width), query.to(dtype), keys.to(dtype), 1)
    features = torch.eye(n) if features is None else torch.as_tensor(features, dtype=torch.float32)
    question, before = (None if t is None else asked(t) for t in (text, preamble))
    grid = grid or (1, n)
    return VisualTokens(features.to(dtype), features[0].to(dtype), grid, layers, question=question, preamble=before)


def noise(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def strong(at, n=576, width=8, seed=0):
    """n patches whose attention is about even, but for those `at`, which stand out in falling order."""
    generator = np.random.default_rng(seed)
    weight = generator.uniform(1, 1.5, n)
    weight[at] = np.linspace(60, 30, len(at))
    side = round(n**0.5)
    features = generator.normal(size=(n, width))
    return given(weight / weight.sum() * 0.9, generator.normal(size=(n, width)), features, (side, n // side))


def random_asked(visual, seed, rows=6, columns=6, width=32):
    """Random visual tokens, with a random question and a random preamble."""
    n, generator = rows * columns, np.random.default_rng(seed + 500)
    texts = [asked(generator.standard_t(2, n) / 10) for _ in range(2)]
    return dataclasses.replace(visual(seed, rows, columns, width), question=texts[0], preamble=texts[1])


# ---- the references, in float64


def attention_of(visual):
    """CLS attention of the last layer: softmax over all keys at full width, CLS column cut, not renormalised."""
    layer = visual.layer(23)
    query, keys = layer.query[0].double().numpy(), layer.key.double().numpy()
    logits = [float(query @ key) / math.sqrt(len(query)) for key in keys]
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights[1:]]


def ranked(score):
    """Indices, the highest first; the lower index first in a tie."""
    return sorted(range(len(score)), key=lambda p: (-score[p], p))


def fence(score):
    """Q3 + 1.5 IQR, quartiles interpolated linearly."""
    ascending, quartiles = sorted(score), []
    for share in (0.25, 0.75):
        at = share * (len(score) - 1)
        low = math.floor(at)
        high = min(low + 1, len(score) - 1)
        quartiles.append(ascending[low] + (at - low) * (ascending[high] - ascending[low]))
    return quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])


def standing_out(score):
    return sum(x > fence(score) for x in score)


def cosine(x, y):
    return float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))


def merged_loop(visual, centres, literal=False):
    """PruMerge's tokens around `centres`, its extra one (not if `literal`), and who speaks for each patch.

    For a centre named twice the lowest of the other patches is out of the game, as released.
    """
    attention, features = attention_of(visual), visual.features.double().numpy()
    key, n = visual.layer(23).key[1:].double().numpy(), len(visual.features)
    like = (lambda x, y: float(x @ y)) if literal else cosine
    rest = [p for p in range(n) if p not in centres][len(centres) - len(set(centres)) :]
    pool = centres + rest
    tokens, source, best = [], [-1 if literal else len(centres)] * n, [-math.inf] * n
    for at, centre in enumerate(centres):
        similarity = {i: like(key[centre], key[p]) for i, p in enumerate(pool) if i != at}
        token = np.zeros_like(features[0]) if literal else features[centre].copy()
        for i in sorted(similarity, key=lambda i, s=similarity: (-s[i], pool[i]))[:32]:
            token += attention[pool[i]] * features[pool[i]]
            if similarity[i] > best[pool[i]]:
                best[pool[i]], source[pool[i]] = similarity[i], at
        tokens.append(token)
    for at, centre in reversed(list(enumerate(centres))):
        source[centre] = at
    if not literal:
        tokens.append(sum((attention[p] * features[p] for p in rest), np.zeros_like(features[0])))
    return np.array(tokens), source


def grid_loop(m, n, part):
    """The grid of PruMerge+: int(s / part) apart on the raster, s = int(1 / ratio), never the last patch."""
    return list(range(0, n - 1, int(int(1 / (m / n)) / part)))


def lof_loop(values, k):
    """Local outlier factor of each value, its k neighbours by distance."""
    n, k = len(values), min(k, len(values) - 1)
    near, reach = [], []
    for p in range(n):
        near.append(sorted((o for o in range(n) if o != p), key=lambda o, p=p: (abs(values[o] - values[p]), o))[:k])
        reach.append(abs(values[near[p][-1]] - values[p]) if k else 0)
    density = []
    for p in range(n):
        distance = [max(reach[o], abs(values[o] - values[p])) for o in near[p]]
        density.append(1 / (sum(distance) / max(k, 1) + 1e-10))
    return [sum(density[o] for o in near[p]) / max(k, 1) / density[p] for p in range(n)]


def lof_count(values, k, threshold=1.5):
    return sum(x > threshold for x in lof_loop(values, k)) if len(values) > 1 else 0


def recoverable_loop(visual, released, sign=1):
    """Tokens, patches and (first step, second step) of Recoverable Compression, as intended or as released."""
    attention, n = attention_of(visual), len(visual.features)
    features, key = visual.features.double().numpy(), visual.layer(23).key[1:].double().numpy()
    question = visual.preamble if released else visual.question
    text = [sign * x / math.sqrt(768) for x in question.relevance(visual).double().tolist()]
    first = ranked(attention)[: lof_count(attention, 20)]
    if released:
        text = [min(text) if p in first else x for p, x in enumerate(text)]
        second = ranked(text)[: int((n - len(first)) * (lof_count(text, 20) / n))]
    else:
        left = [p for p in range(n) if p not in first]
        values = [text[p] for p in left]
        second = [left[i] for i in ranked(values)[: lof_count(values, 20)]]
    main = sorted({*first, *second})
    rest = [p for p in range(n) if p not in main]
    values = [attention[p] for p in rest]
    count = lof_count(values, 10)
    if released and rest:
        count = min(int(features.shape[1] * (count / len(rest))), len(rest))
    centres, tokens = ranked(values)[:count], [features[p] for p in main]
    for c in centres:  # positions within the rest, as released indexes all 576 keys with them

        def pull(i, c=c):
            a, b = (c, i) if released else (rest[c], rest[i])
            return cosine(key[a], key[b]) + 50 * text[rest[i]]

        near = sorted((i for i in range(len(rest)) if i != c), key=lambda i, pull=pull: (-pull(i), i))[:32]
        tokens.append(features[rest[c]] + sum(attention[rest[i]] * features[rest[i]] for i in near))
    gone, stand = [rest[i] for i in range(len(rest)) if i not in centres], main + [rest[c] for c in centres]
    if (rest and (centres or not released)) or not stand:
        tokens.append(sum((attention[p] * features[p] for p in gone), np.zeros_like(features[0])))
        stand.append(-1)
    return np.array(tokens), stand, (first, second, centres)


def same(reduced, tokens, tolerance=1e-5):
    """Whether the features are those of the reference."""
    torch.testing.assert_close(reduced.features.double(), torch.from_numpy(tokens), atol=tolerance, rtol=tolerance)


# ---- PruMerge


NINE = [0.01] * 7 + [0.2, 0.3]


def test_prumerge_by_hand():
    """Nine patches, one-hot features: Q1 = Q3 = fence = 0.01, and the seven that lie on it stay below it."""
    reduced = make("PruMerge").reduce(given(NINE))
    weights = [
        [0.01] * 7 + [0.2, 1],  # centre 8 with weight 1, the other centre by its attention
        [0.01] * 7 + [1, 0.3],
        [0.01] * 7 + [0, 0],  # what was not selected
    ]
    torch.testing.assert_close(reduced.features, torch.tensor(weights))
    assert reduced.keep.tolist() == [8, 7, -1]  # attention order, not raster order
    assert reduced.role.tolist() == ["merged"] * 7 + ["kept"] * 2


def test_prumerge_fence_by_hand():
    """Of 13 the 4th is Q1 = 3 %, the 10th Q3 = 5 %: the fence is at 8 %, between 7.8 and 8.1."""
    percent = [20, 8.1, 7.8, 5, 3, 3, 3, 3, 3, 3, 1, 1, 1]
    reduced = make("PruMerge").reduce(given([x / 100 for x in percent]))
    assert reduced.keep.tolist() == [0, 1, -1]


def test_prumerge_as_printed_by_hand():
    """Algorithm 1: neighbours only, no centre, no extra token, most similar by dot product."""
    reduced = make("PruMerge", variant="paper").reduce(given(NINE))
    torch.testing.assert_close(reduced.features, torch.tensor([[0.01] * 7 + [0.2, 0], [0.01] * 7 + [0, 0.3]]))
    assert reduced.keep.tolist() == [8, 7]


def test_prumerge_takes_32_neighbours_by_cosine_the_lower_index_first():
    """Of 39 others, 30 look the centre's way, five lie across and four opposite: 30 and the first two across."""
    key = [[1e4, 0]] * 30 + [[0, 9e4]] * 5 + [[-9e4, 0]] * 4 + [[1e4, 0]]
    reduced = make("PruMerge").reduce(given([0.01] * 39 + [0.5], key))
    assert reduced.keep.tolist() == [39, -1]
    torch.testing.assert_close(reduced.features[0], torch.tensor([0.01] * 32 + [0] * 7 + [1]))
    torch.testing.assert_close(reduced.features[1], torch.tensor([0.01] * 39 + [0]))
    assert reduced.source.tolist() == [0] * 32 + [1] * 7 + [0]


def test_prumerge_as_printed_takes_the_longer_keys():
    """By dot product the length of a key counts: the eight longest, last in line, come before the short ones."""
    key = [[1e2, 0]] * 31 + [[1e4, 0]] * 8 + [[1e4, 0]]
    tokens = given([0.01] * 39 + [0.5], key)
    expected = torch.tensor([0.01] * 24 + [0] * 7 + [0.01] * 8 + [0])
    reduced = make("PruMerge", variant="paper").reduce(tokens)
    torch.testing.assert_close(reduced.features[0], expected)
    assert reduced.source.tolist() == [0] * 24 + [-1] * 7 + [0] * 9


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows, columns", [(6, 6), (5, 7), (12, 12)])
def test_prumerge_is_the_loop(visual, seed, rows, columns, variant):
    tokens, literal = visual(seed, rows, columns), variant == "paper"
    score = attention_of(tokens)
    centres = ranked(score)[: max(standing_out(score), int(literal))]
    reduced = make("PruMerge", variant=variant).reduce(tokens)
    expected, source = merged_loop(tokens, centres, literal)
    same(reduced, expected)
    assert reduced.keep.tolist() == centres + [-1] * (not literal)
    assert reduced.source.tolist() == source


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("budget", [1, 2, 9, 35, 36, 40])
def test_prumerge_at_a_budget_is_the_loop(visual, budget, variant):
    tokens, literal = visual(5), variant == "paper"
    centres = ranked(attention_of(tokens))[: min(budget, 36) - (not literal)]
    reduced = make("PruMerge", variant=variant, budget=budget).reduce(tokens)
    same(reduced, merged_loop(tokens, centres, literal)[0])
    assert reduced.keep.tolist() == centres + [-1] * (not literal)


def test_prumerge_where_nothing_stands_out():
    flat = given([0.1] * 9)
    released, paper = (make("PruMerge", variant=variant).reduce(flat) for variant in ("released", "paper"))
    assert released.keep.tolist() == [-1] and paper.keep.tolist() == [0]
    torch.testing.assert_close(released.features, torch.full((1, 9), 0.1))


def test_prumerge_reads_the_last_layer_only(visual):
    tokens = visual(2)
    alone = dataclasses.replace(tokens, layers={23: tokens.layer(23)})
    for name in ("PruMerge", "PruMergePlus"):
        assert make(name).layers_read() == (23,)
        assert make(name).reduce(alone).keep.tolist() == make(name).reduce(tokens).keep.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prumerge_in_half_precision(visual, dtype):
    tokens = visual(3, 12, 12)
    last = tokens.layer(23)
    halved = TowerLayer(last.hidden.to(dtype), last.query.to(dtype), last.key.to(dtype), 4)
    tokens = dataclasses.replace(tokens, features=tokens.features.to(dtype), layers={23: halved})
    centres = ranked(attention_of(tokens))[: standing_out(attention_of(tokens))]
    reduced = make("PruMerge").reduce(tokens)
    assert reduced.features.dtype == dtype and reduced.keep.tolist() == [*centres, -1]
    same(reduced, merged_loop(tokens, centres)[0], 1e-2)


def test_prumerge_ranks_attention_that_half_precision_would_lose():
    """The weights of all but one patch underflow in half precision; their order is still theirs."""
    attention = [math.exp(-20 - p) for p in range(8)] + [0.9]
    reduced = make("PruMerge", budget=5).reduce(given(attention[::-1], dtype=torch.float16))
    assert reduced.keep.tolist() == [0, 8, 7, 6, -1]


def test_every_count_of_outliers_survives_its_share():
    """The released code turns m into a share of 576 and back; nothing is lost on the way."""
    assert all(int(576 * (m / 576)) == m for m in range(577))


# ---- PruMerge+


def test_prumergeplus_by_hand():
    """Three of 36 stand out: s = 12, every fourth patch but the last, less the one that stands out itself."""
    tokens = strong([9, 4, 1], 36, 36)
    reduced = make("PruMergePlus").reduce(tokens)
    assert reduced.keep.tolist() == [9, 4, 1, 0, 8, 12, 16, 20, 24, 28, 32, -1]
    earlier = make("PruMergePlus", variant="earlier").reduce(tokens)
    assert earlier.keep.tolist() == [9, 4, 1, 0, 3, 6, 12, 15, 18, 21, 24, 27, 30, 33, -1]  # every third, less 9


GRID = {8: 24, 15: 48, 16: 48, 22: 72, 24: 72, 28: 96, 32: 96, 33: 115, 38: 115, 39: 144, 48: 144, 49: 192, 64: 192}
GRID |= {65: 288, 96: 288, 97: 575, 192: 575}


def counted(m, monkeypatch):
    """Lets m patches stand out, whatever the fence says (it never says more than a quarter)."""
    monkeypatch.setattr("longtail.reducers.prumergeplus.above_fence", lambda score: m)


@pytest.mark.parametrize("m", sorted(GRID))
def test_prumergeplus_reaches_the_golden_grids(m, monkeypatch):
    counted(m, monkeypatch)
    tokens = strong([])
    best = ranked(attention_of(tokens))[:m]
    kept = make("PruMergePlus").reduce(tokens).keep.tolist()
    grid = grid_loop(m, 576, 3)
    assert len(grid) == GRID[m]
    assert kept == best + [p for p in grid if p not in best] + [-1]


@pytest.mark.parametrize(
    "m, total", [(16, 64), (24, 94), (32, 124), (35, 144), (40, 175), (48, 181), (56, 230), (64, 236), (65, 322)]
)
def test_prumergeplus_climbs_the_staircase(m, total):
    """Outliers at random: the published staircase is m + grid + 1, less the mean overlap."""
    counts = []
    for seed in range(6):
        at = np.random.default_rng(seed).permutation(576)[:m]
        counts.append(len(make("PruMergePlus").reduce(strong(at, seed=seed)).keep))
    assert abs(np.mean(counts) - total) <= 3


@pytest.mark.parametrize("variant", ["released", "earlier", "training", "paper"])
@pytest.mark.parametrize("m", [0, 1, 2, 96, 97, 143, 144, 145, 192, 193, 300, 575, 576])
def test_prumergeplus_stands_any_count(m, variant, monkeypatch):
    counted(m, monkeypatch)
    reduced = make("PruMergePlus", variant=variant).reduce(strong([], width=2))
    standing = [p for p in reduced.keep.tolist() if p >= 0]
    assert len(reduced.features) >= 1 and len(set(standing)) == len(standing)
    assert torch.isfinite(reduced.features).all()
    if len(reduced.features) > 576:  # as released: where no patch is left, the extra token is there and empty
        assert len(reduced.features) == 577 and not reduced.features[-1].any()
    if variant == "released" and m >= 97:
        assert len(reduced.features) >= 576  # nothing is pruned


@pytest.mark.parametrize("variant, part", [("released", 3), ("earlier", 4)])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows, columns", [(6, 6), (5, 7), (12, 12)])
def test_prumergeplus_is_the_loop(visual, seed, rows, columns, variant, part):
    tokens, n = visual(seed, rows, columns), rows * columns
    score = attention_of(tokens)
    best = ranked(score)[: standing_out(score)]
    assert best
    try:
        centres = best + [p for p in grid_loop(len(best), n, part) if p not in best]
    except ValueError:  # step 0: the released code stops here
        assert len(make("PruMergePlus", variant=variant).reduce(tokens).keep) == n
        return
    reduced = make("PruMergePlus", variant=variant).reduce(tokens)
    expected, source = merged_loop(tokens, centres)
    same(reduced, expected)
    assert reduced.keep.tolist() == [*centres, -1] and reduced.source.tolist() == source


def test_prumergeplus_training_branch_is_72_and_72():
    """An eighth by attention, every 8th from patch 4 on, both 72 of 576, and the extra token."""
    at = list(range(5, 576, 8))  # beside the grid
    reduced = make("PruMergePlus", variant="training").reduce(strong(at))
    assert reduced.keep.tolist() == at + list(range(4, 575, 8)) + [-1] and len(reduced.keep) == 72 + 72 + 1


@pytest.mark.parametrize("n", [36, 37])
def test_prumergeplus_training_branch_counts_twice_what_is_on_the_grid(n):
    """Four by attention; of the grid 4, 12, 20, 28 two are among them: patches 0 and 1, the first ones left over,
    are lost to every token."""
    tokens = strong([12, 30, 7, 4], n, n)  # of 37 patches the last one, 36, is not on the grid
    reduced = make("PruMergePlus", variant="training").reduce(tokens)
    expected, _ = merged_loop(tokens, [12, 30, 7, 4, 4, 12, 20, 28])
    same(reduced, expected)
    stand = reduced.keep.tolist()
    assert sorted(p for p in stand if p >= 0) == [4, 7, 12, 20, 28, 30] and stand.count(-1) == 3


def even(gaps):
    return max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("m", [1, 2, 5, 40, 72, 143])
def test_prumergeplus_as_printed_doubles_the_outliers(m):
    at = np.random.default_rng(m).permutation(576)[:m]
    tokens = strong(at, width=4)
    reduced = make("PruMergePlus", variant="paper").reduce(tokens)
    stand = reduced.keep.tolist()
    assert stand[:m] == at.tolist() and len(stand) == 2 * m and -1 not in stand
    assert not set(stand[m:]) & set(at.tolist())
    left = [p for p in range(576) if p not in at]
    assert even(np.diff(sorted(left.index(p) for p in stand[m:]))) if m > 1 else True
    if m <= 5:
        same(reduced, merged_loop(tokens, stand, literal=True)[0])


@pytest.mark.parametrize("variant", ["released", "earlier", "training", "paper"])
@pytest.mark.parametrize("budget", [1, 2, 3, 20, 35, 36, 40])
def test_prumergeplus_at_a_budget(visual, budget, variant):
    """Exactly the budget, the most attended first, the others even, and every token what the loop makes of it."""
    tokens = visual(7)
    reduced = make("PruMergePlus", variant=variant, budget=budget).reduce(tokens)
    assert len(reduced.features) == min(budget, 36)
    literal = variant == "paper"
    centres = reduced.keep.tolist() if literal else reduced.keep.tolist()[:-1]
    assert -1 not in centres and len(set(centres)) == len(centres)
    same(reduced, merged_loop(tokens, centres, literal)[0])
    best = ranked(attention_of(tokens))
    quarter = next(i for i in range(len(centres) + 1) if centres[: i + 1] != best[: i + 1])
    assert quarter >= len(centres) // 4


# ---- Recoverable Compression


def test_lof_by_hand():
    """1, 2, 3, 4 have density 1/1.5 each (reach 1 and 2), 100 has 1/96.5: factors 1, 1, 1, 1 and 64.3."""
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    np.testing.assert_allclose(lof_loop(values, 2), [1, 1, 1, 1, 96.5 / 1.5], rtol=1e-6)
    for threshold, count in ((1.5, 1), (64, 1), (65, 0), (0.99, 5)):
        assert outliers(torch.tensor(values), 2, threshold) == count
    assert outliers(-torch.tensor(values), 2, 1.5) == 1  # either side
    assert outliers(torch.ones(30), 2, 1) == 0  # a factor of 1 is not above 1


def test_lof_of_tiny_values_by_hand():
    """1e-10 is added to the mean reach: 0, 1, 2, 3, 7 (e-10) have 2.5 and, the last, 5.5: a factor of 2.2, not 3."""
    values = torch.tensor([0, 1e-10, 2e-10, 3e-10, 7e-10])
    assert outliers(values, 2, 2.1) == 1 and outliers(values, 2, 2.3) == 0


@pytest.mark.parametrize("k", [1, 2, 10, 20, 90])
@pytest.mark.parametrize("n", [2, 11, 36, 144])
@pytest.mark.parametrize("seed", range(3))
def test_lof_is_the_loop(seed, n, k):
    generator = np.random.default_rng(seed)
    values = generator.standard_t(2, n).astype(np.float32)
    for threshold in (1.0001, 1.2, 1.5, 3):
        assert outliers(torch.from_numpy(values), k, threshold) == lof_count(
            values.astype(float).tolist(), k, threshold
        )


@pytest.mark.parametrize("values", [[1.0], [3.0] * 30, [0.0] * 25 + [1.0], [0.0] * 12 + [1.0] * 12, [0.0] * 5])
def test_lof_of_equal_values(values):
    """Blocks of equal values, such as the released second step makes, shorter and longer than k."""
    for k in (2, 10, 20):
        assert outliers(torch.tensor(values), k, 1.5) == lof_count(values, k)


EIGHT = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.5]


def test_recoverable_by_hand():
    """Patch 7 stands out by attention, 3 by the question; no centre (every LOF is below 9), so one extra token."""
    tokens = given(EIGHT, text=[0.10, 0.11, 0.12, 0.90, 0.13, 0.14, 0.15, 0.16])
    reduced = make("Recoverable", neighbours=2, centre_neighbours=2, threshold=9).reduce(tokens)
    assert reduced.keep.tolist() == [3, 7, -1]
    extra = [0.01, 0.02, 0.03, 0, 0.05, 0.06, 0.07, 0]
    torch.testing.assert_close(reduced.features, torch.stack([torch.eye(8)[3], torch.eye(8)[7], torch.tensor(extra)]))
    assert reduced.role.tolist() == ["merged"] * 3 + ["recovered"] + ["merged"] * 3 + ["kept"]
    unlike = make("Recoverable", neighbours=2, centre_neighbours=2, threshold=9, sign="unlike").reduce(tokens)
    assert unlike.keep.tolist() == [0, 7, -1]  # as many, from the other end


def test_recoverable_centre_by_hand():
    """With 20 neighbours, all others, nothing stands out; with two, patch 7 does, and becomes the one centre."""
    tokens = given(EIGHT, text=[0.10, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17])
    reduced = make("Recoverable", neighbours=20, centre_neighbours=2, threshold=9).reduce(tokens)
    assert reduced.keep.tolist() == [7, -1]
    torch.testing.assert_close(reduced.features, torch.tensor([[*EIGHT[:7], 1], [*EIGHT[:7], 0]]))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("rows, columns, width", [(6, 6, 32), (5, 7, 64), (12, 12, 16)])
def test_recoverable_is_the_loop(visual, rows, columns, width, released):
    steps = np.zeros(3, dtype=int)
    for seed in range(8):
        tokens = random_asked(visual, seed, rows, columns, width)
        expected, stand, taken = recoverable_loop(tokens, released)
        reduced = make("Recoverable", variant="released" if released else "intended").reduce(tokens)
        same(reduced, expected)
        assert reduced.keep.tolist() == stand
        steps += [len(step) > 0 for step in taken]
        first, second, _ = taken
        assert all(reduced.role[p] == "kept" for p in first)
        assert all(reduced.role[p] == "recovered" for p in set(second) - set(first))
    assert (steps > 0).all()  # each step took part


def test_recoverable_sign_turns_the_text(visual):
    for seed in range(4):
        tokens = random_asked(visual, seed)
        turned = dataclasses.replace(tokens, question=asked(-tokens.question.relevance(tokens)))
        unlike = make("Recoverable", sign="unlike").reduce(tokens)
        assert torch.equal(unlike.features, make("Recoverable").reduce(turned).features)


def test_recoverable_as_released_never_reads_the_question(visual):
    """The text given to CLIP ends before the question, so that it answers every question alike."""
    tokens = random_asked(visual, 0, 12, 12)
    other = dataclasses.replace(tokens, question=asked(-tokens.question.relevance(tokens)))
    preamble = dataclasses.replace(tokens, preamble=other.question)
    for variant, reads in (("released", tokens.preamble), ("intended", tokens.question)):
        method = make("Recoverable", variant=variant)
        first, asked_otherwise, told_otherwise = (method.reduce(v).keep.tolist() for v in (tokens, other, preamble))
        assert (first == asked_otherwise) == (reads is tokens.preamble)
        assert (first == told_otherwise) == (reads is tokens.question)


def test_recoverable_as_released_counts_centres_by_channels(visual):
    """int(D share) instead of int(patches left share): twice as many channels, about twice as many centres."""
    for seed in range(4):
        narrow = random_asked(visual, seed, 12, 12, 32)
        wide = dataclasses.replace(narrow, features=torch.cat([narrow.features, narrow.features], dim=1))
        few, many = (len(recoverable_loop(v, True)[2][2]) for v in (narrow, wide))
        assert abs(many - 2 * few) <= 1
        method = make("Recoverable", variant="released")
        assert len(method.reduce(wide).keep) - len(method.reduce(narrow).keep) == many - few + (few == 0 < many)


@pytest.mark.parametrize("variant", ["intended", "released"])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20, 35, 36, 40])
def test_recoverable_at_a_budget(visual, budget, variant):
    tokens = random_asked(visual, 3)
    reduced = make("Recoverable", variant=variant, budget=budget).reduce(tokens)
    standing = [p for p in reduced.keep.tolist() if p >= 0]
    assert len(reduced.features) == min(budget, 36) and len(set(standing)) == len(standing)


def test_recoverable_asks_for_a_question(visual):
    with pytest.raises(ValueError, match="guided by the question"):
        make("Recoverable").reduce(visual(0))


# ---- what may come in


EVERY = [("PruMerge", v) for v in ("released", "paper")]
EVERY += [("PruMergePlus", v) for v in ("released", "earlier", "training", "paper")]
EVERY += [("Recoverable", v) for v in ("intended", "released")]


@pytest.mark.parametrize("name, variant", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["flat", "zero", "one outlier", "one patch", "two patches"])
def test_nothing_breaks_them(name, variant, dtype, case):
    n = {"one patch": 1, "two patches": 2}.get(case, 36)
    attention = [0.9 / n] * n if case != "one outlier" else [0.5] + [0.01] * 35
    features = np.zeros((n, 4)) if case == "zero" else np.ones((n, 4))
    text = [0.2] * n if case != "one outlier" else [0.2] * 35 + [0.9]
    tokens = given(attention, np.zeros((n, 3)), features, None, text, text, dtype)
    for budget in (0, 1, n, n + 1):
        reduced = make(name, variant=variant, budget=budget).reduce(tokens)
        assert len(reduced.features) == (min(budget, n) if budget else len(reduced.keep)) >= 1
        assert torch.isfinite(reduced.features).all() and reduced.features.dtype == dtype
        assert ((reduced.source >= 0) == torch.from_numpy(reduced.role != "dropped")).all()
        for token, patch in enumerate(reduced.keep.tolist()):
            assert patch < 0 or reduced.source[patch] == token
