"""Stage 1: the curve, its knee and what alpha keeps, by hand, by plain loops and by golden facts."""

import math

import numpy as np
import pytest
import torch

import longtail
from longtail.similarity import kept, knee, long_tail, objective
from longtail.tokens import TowerLayer


def plain_knee(curve):
    """i* of eq. 3 read aloud."""
    n, best, at = len(curve), -1.0, 1
    if curve[0] == curve[-1]:
        return 1
    for i in range(1, n):
        f = (n - i) * (curve[0] - curve[i - 1]) / (curve[0] - curve[-1])
        if f > best:
            best, at = f, i
    return at


RANKS = np.arange(1, 577, dtype=float)


@pytest.mark.parametrize(
    "curve, i, tail",
    [
        (577 - RANKS, 288, 69),
        (RANKS**-0.5, 46, 127),
        (RANKS**-1.0, 24, 132),
        (RANKS**-1.2, 19, 133),
        (RANKS**-1.5, 15, 134),
        (RANKS**-2.0, 10, 135),
        (0.9**RANKS, 39, 128),
        (0.99**RANKS, 164, 98),
        (np.sqrt(1 - np.linspace(0, 1, 576)), 320, 61),
        (np.r_[np.ones(558), np.zeros(18)] + np.linspace(1e-6, 0, 576), 559, 4),
        (np.ones(576), 1, 138),
    ],
)
def test_golden_curves(curve, i, tail):
    assert knee(curve) == i == plain_knee(curve)
    assert kept(curve, i, 0.24, "tail") == tail


def test_line_under_the_three_readings():
    line = 577 - RANKS
    assert kept(line, 288, 0.24, "head") == 70  # ceil(69.12)
    assert kept(line, 288, 0.24, "threshold") == int((line >= 0.24 * line[287]).sum()) == 507
    assert kept(line, 288, 1.0, "threshold") == 288  # d_i* itself is in


@pytest.mark.parametrize("seed", range(20))
def test_knee_bound_on_convex_curves(seed):
    """A convex descending curve never has i* beyond floor((n+1)/2), so the printed formula keeps at most 70."""
    steps = np.sort(np.random.default_rng(seed).exponential(size=575))[::-1]
    curve = np.r_[steps.sum(), steps.sum() - np.cumsum(steps)]
    assert knee(curve) == plain_knee(curve) <= 288
    assert kept(curve, knee(curve), 0.24, "head") <= 70


@pytest.mark.parametrize("seed", range(10))
def test_long_tail_against_plain_loops(seed):
    scores = torch.randn(97, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(0)
    scores[10] = scores[50] = scores[3]  # ties
    order = sorted(range(97), key=lambda p: (-float(scores[p]), p))
    curve = [float(scores[p]) for p in order]
    for reading, alpha in (("tail", 0.24), ("head", 1.7), ("threshold", 0.6)):
        got, i = long_tail(scores, alpha, reading), plain_knee(curve)
        want = {
            "tail": math.floor(alpha * (97 - i)),
            "head": math.ceil(alpha * i),
            "threshold": sum(d >= alpha * curve[i - 1] for d in curve),
        }[reading]
        assert got.knee == i and got.kept == min(max(want, 1), 97)
        assert got.order.tolist() == order and got.keep.tolist() == order[: got.kept]


@pytest.mark.parametrize("n, i", [(1, 1), (2, 1), (3, 2)])
def test_smallest_curves(n, i):
    curve = long_tail(torch.linspace(1, 0.5, n), 0.01, "tail")
    assert (curve.knee, curve.kept) == (i, 1)
    assert len(objective(curve.similarity)) >= 1


def test_budget_overrules_alpha():
    assert long_tail(torch.rand(30), 0.24, "tail", budget=7).kept == 7
    assert long_tail(torch.rand(30), 0.24, "tail", budget=99).kept == 30


def test_full_width_logit_is_head_mean_times_root_of_heads():
    """sum_h(q_h.k_h)/sqrt(D) = sqrt(H) mean_h(q_h.k_h/sqrt(D/H)): with 16 heads, four times the head mean (eq. 1)."""
    layer = TowerLayer(torch.randn(10, 64), torch.randn(1, 64), torch.randn(10, 64), 16)
    full = (layer.query @ layer.key.T)[0] / 8
    heads = torch.stack([layer.query[:, i : i + 4] @ layer.key[:, i : i + 4].T / 2 for i in range(0, 64, 4)]).mean(0)[0]
    torch.testing.assert_close(full, 4 * heads)
    torch.testing.assert_close(layer.similarity("attention"), full.softmax(0)[1:])


def test_similarities_by_plain_loops():
    generator = torch.Generator().manual_seed(0)
    hidden, query, key = (torch.randn(s, 24, generator=generator) for s in (13, 1, 13))
    layer = TowerLayer(hidden, query, key, 3)
    heads = []
    for h in range(3):
        part = slice(8 * h, 8 * h + 8)
        heads.append(torch.stack([query[0, part] @ k[part] / math.sqrt(8) for k in key]).softmax(0))
    torch.testing.assert_close(layer.similarity("attention_heads"), (sum(heads) / 3)[1:])
    dots = torch.stack([hidden[0] @ patch / math.sqrt(24) for patch in hidden[1:]])
    torch.testing.assert_close(layer.similarity("hidden"), dots.softmax(0))
    cosines = [hidden[0] @ patch / hidden[0].norm() / patch.norm() for patch in hidden[1:]]
    torch.testing.assert_close(layer.similarity("cosine"), torch.stack(cosines))
    assert layer.similarity("attention").sum() < 1  # CLS column cut, not renormalised
    with pytest.raises(ValueError, match="similarity must be one of attention"):
        layer.similarity("dot")


def test_half_precision_scores_are_taken_in_float32():
    """In float16 the tail of a peaky softmax would underflow to zero and tie."""
    key = torch.linspace(10, -10, 40)[:, None].half().repeat(1, 4)
    layer = TowerLayer(key, torch.ones(1, 4).half(), key, 1)
    scores = layer.similarity("attention")
    assert scores.dtype == torch.float32 and (scores.diff() < 0).all()


@pytest.mark.parametrize("similarity", ["attention", "attention_heads", "hidden", "cosine"])
@pytest.mark.parametrize("reading", ["tail", "head", "threshold"])
def test_longtail_reduces_by_its_fields(visual, similarity, reading):
    tokens = visual(4)
    reducer = longtail.LongTail(similarity=similarity, reading=reading, layer=9, alpha=0.5)
    scores = tokens.layer(9).similarity(similarity)
    expected = long_tail(scores, 0.5, reading)
    reduced = reducer.reduce(tokens)
    assert reduced.keep.tolist() == sorted(expected.order[: expected.kept].tolist())
    assert torch.equal(reduced.features, tokens.features[reduced.keep])
    assert reduced.curve.knee == expected.knee


def test_longtail_at_a_budget_is_topk(visual):
    for budget in (1, 5, 35, 36):
        ours, fixed = longtail.LongTail.at(budget).reduce(visual(2)), longtail.TopK.at(budget).reduce(visual(2))
        assert torch.equal(ours.keep, fixed.keep) and len(ours.keep) == budget
