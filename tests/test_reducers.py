"""Promises over the whole registry: every paper that is added keeps them without a line here."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import random_visual

import longtail
from longtail.models.llava import Llava
from longtail.reducer import REDUCERS, Reducer, make, param
from longtail.tokens import ROLES, Question, Reduced

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
NAMES = """
    Full LongTail TopK Random Sequential Uniform PruMerge PruMergePlus Recoverable ToMe EViT ATS CrossGET H2O SnapKV
    Feather VisionZip FasterVLM VisPruner DivPrune CDPruner TRIM HiRED FastV SparseVLM PyramidDrop DART Manual
""".split()
GUIDED = {"TRIM", "CDPruner", "Recoverable"}  # by the question, as CLIP reads it
EACH = pytest.mark.parametrize("name", list(REDUCERS))
OUTSIDE = pytest.mark.parametrize("name", [n for n, reducer in REDUCERS.items() if "reduce" in reducer.acts()])


@pytest.fixture(scope="module")
def clever(clip_folder, folder):
    """The random tiny model, with CLIP's text tower."""
    return longtail.load(str(folder))


@pytest.fixture
def asked(visual):
    """Builds visual tokens with a question beside them, and the text before the image, of random cosines."""

    def build(seed, *grid):
        tokens = visual(seed, *grid)

        def text(seed):
            generator = torch.Generator().manual_seed(seed)
            cosine = torch.rand(len(tokens.features), generator=generator) / 2 - 0.3
            return Question(torch.arange(5), torch.randn(5, 32, generator=generator), lambda visual: cosine)

        return dataclasses.replace(tokens, question=text(seed), preamble=text(seed + 1000))

    return build


def say(llava, picture, reducer, **options):
    return longtail.answer(llava, picture, "What is here?", reducer, **{"max_new_tokens": 2, **options})


def consistent(reduced, n):
    """Whether keep, source, role and features tell one story."""
    m = len(reduced.features)
    assert len(reduced.keep) == m and len(reduced.source) == n == len(reduced.role)
    assert reduced.features.isfinite().all()
    assert set(reduced.role) <= set(ROLES)
    assert ((reduced.source == -1) == torch.tensor(reduced.role == "dropped")).all()
    assert -1 <= reduced.source.min() and reduced.source.max() < m
    assert -1 <= reduced.keep.min() and reduced.keep.max() < n
    standing = [p for p in reduced.keep.tolist() if p >= 0]
    assert len(set(standing)) == len(standing)
    for token, patch in enumerate(reduced.keep.tolist()):
        assert patch < 0 or reduced.source[patch] == token
    for patch, role in enumerate(reduced.role):
        assert (patch in standing) == (role in ("kept", "recovered"))


def test_the_registry_is_the_promised_one():
    assert sorted(REDUCERS) == sorted(NAMES) and len(NAMES) == 28
    assert all(reducer.__name__ == name for name, reducer in REDUCERS.items())


@OUTSIDE
@pytest.mark.parametrize("seed", [0, 1])
def test_reduced_is_consistent(name, asked, seed):
    tokens = asked(seed)
    reduced = make(name).reduce(tokens)
    consistent(reduced, 36)
    again = make(name).reduce(asked(seed))
    assert torch.equal(again.features, reduced.features) and torch.equal(again.keep, reduced.keep)


@OUTSIDE
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (5, 7)])
def test_any_grid(name, asked, grid):
    n = math.prod(grid)
    consistent(make(name).reduce(asked(0, *grid)), n)
    for budget in {1, n}:
        reduced = REDUCERS[name].at(budget).reduce(asked(0, *grid))
        consistent(reduced, n)
        assert len(reduced.features) == budget


@OUTSIDE
@pytest.mark.parametrize("budget", [1, 7, 35, 36])
def test_at_a_budget_that_many_are_handed_over(name, asked, budget):
    reduced = REDUCERS[name].at(budget).reduce(asked(3))
    consistent(reduced, 36)
    assert len(reduced.features) == (36 if name == "Full" else budget)


@EACH
@pytest.mark.parametrize("budget", [1, 7, 35, 36])
def test_at_a_budget_an_answer_reads_that_many(name, clever, picture, budget):
    """Where a method acts in the language model, its last layer reads that many; where it acts in the cache, that many
    entries lie there beside those of the text."""
    read = []
    hook = clever.decoder_layers[-1].register_forward_pre_hook(lambda _, states: read.append(states[0].shape[1]))
    try:
        answer = say(clever, picture, REDUCERS[name].at(budget), max_new_tokens=1)
    finally:
        hook.remove()
    acts = set(answer.reducer.acts())
    text = answer.tokens.prompt - answer.tokens.visual
    for reduced in answer.reduced:
        consistent(reduced, 36)
    if name == "Full":
        assert answer.tokens.visual == 36
    elif acts & {"trim", "reduce"}:
        assert answer.tokens.visual == budget == len(answer.reduced[0].features)
        assert "drop" in acts or read == [budget + text]
    elif "drop" in acts:
        assert answer.tokens.visual == 36 and read == [budget + text]
    else:
        assert acts == {"evict"} and read == [36 + text] and answer.tokens.kv_entries == budget + text


@EACH
@pytest.mark.parametrize("budget", [37, 500])
def test_a_budget_of_more_than_there_are_keeps_all(name, clever, picture, budget):
    if name == "Manual":
        with pytest.raises(ValueError, match=rf"^Manual\.patches names patch {budget - 1}, but this image has 36"):
            say(clever, picture, REDUCERS[name].at(budget))
        return
    answer = say(clever, picture, REDUCERS[name].at(budget), max_new_tokens=1)
    assert 36 <= answer.tokens.visual <= min(budget, 37)  # one may stand for none of the patches


def hooks_of(model):
    """Every hook on every module: transformers leaves some of its own once states were asked of it."""
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]


@EACH
def test_answers_and_leaves_the_model_as_found(name, clever, picture):
    before, hooks = {k: v.clone() for k, v in clever.model.state_dict().items()}, hooks_of(clever.model)
    first, second = (say(clever, picture, make(name), max_new_tokens=12) for _ in range(2))
    assert first.token_ids == second.token_ids and first.finished in ("eos", "length")
    assert first.tokens.visual == len(first.record()["keep"]) <= 37 and first.tokens.patches == 36
    consistent(first.reduced[0], 36)
    assert hooks_of(clever.model) == hooks
    assert all(torch.equal(before[k], v) for k, v in clever.model.state_dict().items())


@EACH
def test_both_ends_of_every_parameter_answer(name, clever, picture):
    for parameter in REDUCERS[name].parameters():
        if parameter.choices:
            values = parameter.choices
        elif parameter.kind is bool:
            values = (False, True)
        elif parameter.kind is str:
            continue  # text has no ends
        else:
            values = REDUCERS[name].limits(parameter.name)
        for value in values:
            answer = say(clever, picture, make(name, **{parameter.name: value}))
            assert answer.finished in ("eos", "length") and answer.first_logits.isfinite().all()
            assert 1 <= answer.tokens.visual <= 37, f"{parameter.name} = {value}"
            consistent(answer.reduced[0], 36)


@EACH
def test_without_a_text_tower_guided_methods_say_so(name, llava, picture):
    bare = Llava(llava.model, llava.processor)
    if name not in GUIDED:
        assert say(bare, picture, make(name), max_new_tokens=1).finished
        return
    with pytest.raises(ValueError, match=r"^this model has no CLIP text tower, .* clip/ folder inside$"):
        say(bare, picture, make(name))
    with pytest.raises(ValueError, match=r"guided by the question"):
        make(name).reduce(random_visual())


@EACH
def test_says_what_it_does(name):
    reducer = REDUCERS[name]
    assert reducer.sentence().endswith(".") and len(reducer.sentence().split()) > 4
    assert "(" not in reducer.sentence()[:12]  # not the signature that @dataclass invents
    assert reducer.paper.startswith("https://")
    assert set(reducer.acts()) <= {"trim", "reduce", "drop", "evict"}
    assert set(make(name).active()) <= set(reducer.acts())
    for parameter in reducer.parameters():
        assert parameter.help, f"{name}.{parameter.name} has no help"


@EACH
def test_limits_are_kept(name):
    for parameter in REDUCERS[name].parameters():
        if parameter.choices:
            bad = ["nothing", 3, None]
        elif parameter.kind is bool:
            bad = ["yes", 1, None]
        elif parameter.kind is str:
            bad = [3.5, None, "x"]
        else:
            low, high = REDUCERS[name].limits(parameter.name)
            bad = [low - 1, high + 1, math.nan, math.inf, "x", None, True] + (
                [low + 0.5] if parameter.kind is int else []
            )
        for value in bad:
            with pytest.raises(
                ValueError, match=rf"^{name}\.{parameter.name} must be .*, got {value!r}".replace("'", ".")
            ):
                make(name, **{parameter.name: value})


def test_messages_are_the_agreed_shape():
    with pytest.raises(ValueError, match=r"^LongTail\.alpha must be between 0\.01 and 1, got 0$"):
        longtail.LongTail(alpha=0)
    with pytest.raises(ValueError, match=r"^LongTail\.alpha must be between 0\.01 and 1, got 2$"):
        longtail.LongTail(alpha=2)
    with pytest.raises(ValueError, match=r"^LongTail\.alpha must be between 0\.01 and 1000, got 1001$"):
        longtail.LongTail(alpha=1001, reading="head")
    with pytest.raises(ValueError, match="there is no method 'FastVV': choose one of Full"):
        make("FastVV")
    with pytest.raises(ValueError, match="TopK has no parameter 'k': it has budget, layer, similarity"):
        make("TopK", k=3)


def test_a_reducer_is_one_declaration(visual, llava, picture):
    """Adding a paper needs no edit anywhere: declare it, and it answers, checks itself and describes itself."""

    @longtail.register
    @dataclasses.dataclass(frozen=True)
    class Odd(Reducer):
        """Keeps every other patch, for the sake of this test."""

        paper = "https://example.org"
        step: int = param(2, 1, 9, 1, "stride")

        def reduce(self, visual):
            return Reduced.select(visual, torch.arange(0, len(visual.features), self.step))

    try:
        assert longtail.answer(llava, picture, "What?", make("Odd", step=3), max_new_tokens=2).tokens.visual == 12
        assert Odd.describe()["parameters"][0]["high"] == 9 and Odd.acts() == ("reduce",)
    finally:
        del REDUCERS["Odd"]


def test_whole_numbers_from_sliders_become_integers():
    assert longtail.TopK(budget=12.0).budget == 12 and isinstance(longtail.TopK(budget=12.0).budget, int)


# ---- the controls, by hand


def test_topk_by_hand(visual):
    tokens = visual(8)
    scores = tokens.layer(16).similarity("attention").tolist()
    best = sorted(sorted(range(36), key=lambda p: (-scores[p], p))[:9])
    assert longtail.TopK(budget=9).reduce(tokens).keep.tolist() == best
    assert longtail.TopK().budget == 156


def test_random_is_seeded_anew_for_each_image(visual):
    expected = torch.randperm(36, generator=torch.Generator().manual_seed(4))[:10].sort().values
    for image in (0, 1):
        assert torch.equal(longtail.Random(budget=10, seed=4).reduce(visual(image)).keep, expected)
    assert not torch.equal(longtail.Random(budget=10, seed=5).reduce(visual(0)).keep, expected)


def test_sequential_is_the_top_rows(visual):
    assert longtail.Sequential(budget=8).reduce(visual()).keep.tolist() == list(range(8))


@pytest.mark.parametrize("rows, columns", [(6, 6), (5, 8), (8, 5), (5, 7), (7, 5), (4, 4)])
def test_uniform_reaches_the_papers_grids(visual, rows, columns):
    """Cell centres floor((i+.5) 24/r) 24 + floor((j+.5) 24/c)."""
    expected = [
        math.floor((i + 0.5) * 24 / rows) * 24 + math.floor((j + 0.5) * 24 / columns)
        for i in range(rows)
        for j in range(columns)
    ]
    tokens = visual(0, 24, 24, 8)
    assert longtail.Uniform(rows=rows, columns=columns).reduce(tokens).keep.tolist() == expected


@pytest.mark.parametrize("budget", range(1, 577))
def test_uniform_is_exact_at_every_budget(budget):
    rows = longtail.Uniform(budget=budget)._per_row(24, 24)
    assert sum(rows) == budget and max(rows) <= 24 and len(rows) <= 24 and max(rows) - min(rows) <= 1
    if budget == 36:
        assert rows == [6] * 6


@pytest.mark.parametrize("budget", [1, 35, 144, 300, 575, 576])
def test_uniform_with_one_side_given(visual, budget):
    for sides in ({"rows": 5}, {"columns": 5}):
        kept = longtail.Uniform(budget=budget, **sides).reduce(visual(0, 24, 24, 8)).keep
        assert len(kept) == budget == len(set(kept.tolist()))


# ---- reductions of reductions


def test_then_tells_two_reductions_over_the_original_patches(visual):
    tokens = visual(1)
    first = Reduced.select(tokens, torch.tensor([30, 2, 11, 7]))
    inner = dataclasses.replace(tokens, features=first.features)
    both = first.then(Reduced.select(inner, torch.tensor([1, 3])))
    assert both.keep.tolist() == [7, 30]
    consistent(both, 36)
    assert torch.equal(both.features, tokens.features[[7, 30]])


def test_then_keeps_merges_and_extra_tokens(visual):
    import numpy as np

    tokens = visual(1)
    first = Reduced.select(tokens, torch.arange(4))
    merged = Reduced(
        torch.zeros(3, 32), torch.tensor([0, 2, -1]), torch.tensor([0, 0, 1, -1]),
        np.array(["kept", "merged", "recovered", "dropped"]),
    )  # fmt: skip
    both = first.then(merged)
    assert both.keep.tolist() == [0, 2, -1]
    assert both.source[:5].tolist() == [0, 0, 1, -1, -1]
    assert both.role[:5].tolist() == ["kept", "merged", "recovered", "dropped", "dropped"]


def test_then_leaves_the_dropped_alone(visual):
    """Token 0 is merged later, and patches that were gone before have none."""
    tokens = visual(1)
    first = Reduced.select(tokens, torch.tensor([3, 5, 8]))
    both = first.then(Reduced.merging(tokens.features[:2], torch.tensor([1, 2]), torch.tensor([1, 0, 1])))
    consistent(both, 36)
    assert both.keep.tolist() == [5, 8] and both.size().tolist() == [1, 2]
    assert {p: both.role[p] for p in range(9) if both.source[p] >= 0} == {3: "merged", 5: "kept", 8: "kept"}


def test_layers_that_were_not_named_are_refused(visual):
    tokens = dataclasses.replace(visual(), layers={16: visual().layer(16)})
    with pytest.raises(ValueError, match=r"tower layer 3 was not captured \(captured: 16\): name it in layers_read"):
        tokens.layer(3)


# ---- on the bundled model


SHOWN = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("example", SHOWN, ids=[example["image"] for example in SHOWN])
def test_every_method_answers_every_example(example, tiny):
    reducers = [make(name) for name in REDUCERS]
    image, question = EXAMPLES / example["image"], example["question"]
    answers = longtail.compare(tiny, image, question, reducers, max_new_tokens=8)
    for name, answer in zip(REDUCERS, answers, strict=True):
        assert answer.method == name and answer.text and answer.finished in ("eos", "length")
        assert answer.first_logits.isfinite().all() and 0 < answer.tokens.layer_mean <= 577
        for view in answer.reduced:
            consistent(view, 576)
