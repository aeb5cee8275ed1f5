"""The page: its parts as functions. `test_browser` has the whole of it."""

import asyncio
import base64
import io
import json
import re
import sys
import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from gradio.context import LocalContext
from PIL import Image, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import working

import app
import longtail
from demo import (
    arithmetic,
    board,
    controls,
    draw,
    examples,
    export,
    figures,
    link,
    numbers,
    page,
    panel,
    presets,
    run,
    words,
)
from demo.line import Line
from longtail import REDUCERS, LongTail, Reducer, make, param
from longtail.export import PHASES
from longtail.export import phases as export_phases
from longtail.similarity import READINGS, long_tail

# ---- controls


@pytest.mark.parametrize("name", REDUCERS)
def test_every_parameter_is_a_control(name):
    with gr.Blocks():
        made = controls.show(name, {}, gr.JSON())
    for parameter in REDUCERS[name].parameters():
        control = made[parameter.name]
        assert control.value == parameter.default
        assert control.label == parameter.name.replace("_", " ")
        assert control.info.replace("∗", "*") == parameter.help
        if parameter.choices:
            assert tuple(value for _, value in control.choices) == parameter.choices
        if isinstance(control, gr.Slider):
            assert (control.minimum, control.maximum, control.step) == (parameter.low, parameter.high, parameter.step)


def test_a_new_method_needs_no_edit(monkeypatch, llava, scenes):
    @dataclass(frozen=True)
    class Halve(Reducer):
        """Keeps every second patch."""

        phase: int = param(0, 0, 1, 1, "which half")

    monkeypatch.setitem(REDUCERS, "Halve", Halve)
    built = page.build(llava, examples=scenes)
    menus = [b for b in built.blocks.values() if isinstance(b, gr.Dropdown) and "Method " in str(b.label)]
    assert len(menus) == presets.COLUMNS
    assert all(("Halve", "Halve") in menu.choices for menu in menus)
    with gr.Blocks():
        assert list(controls.show("Halve", {"Halve": {"phase": 1}}, gr.JSON())) == ["phase"]
    assert controls.chosen("Halve", {"Halve": {"phase": 1}}) == Halve(phase=1)


def test_a_text_is_a_text_field(monkeypatch):
    @dataclass(frozen=True)
    class Written(Reducer):
        """Keeps what is written."""

        patches: str = param("0-3", help="which")

    monkeypatch.setitem(REDUCERS, "Written", Written)
    with gr.Blocks():
        field = controls.show("Written", {"Written": {"patches": "1, 2"}}, gr.JSON())["patches"]
    assert isinstance(field, gr.Textbox) and (field.value, field.label, field.info) == ("1, 2", "patches", "which")


def test_limits_move_with_the_reading_alone():
    with gr.Blocks() as page:
        store = gr.JSON()
        controls.show("LongTail", {}, store)
    write, limit = (fn.js for fn in page.fns.values())
    assert '"heavy": 0.5' in write and '["LongTail"]: changed' in write
    table = json.loads(limit.partition("limits = ")[2].partition("[JSON")[0])
    assert {reading: limits[0] for reading, limits in table.items()} == {
        json.dumps([reading]): list(LongTail.limits("alpha", reading=reading)) for reading in READINGS
    }


def test_settings_belong_to_their_method():
    settings = {"LongTail": {"alpha": 0.5}, "Random": {"budget": 7}}
    assert controls.chosen("LongTail", settings) == LongTail(alpha=0.5)
    assert controls.chosen("Random", settings) == longtail.Random(budget=7)
    assert controls.chosen("TopK", settings) == longtail.TopK()
    assert controls.chosen("Full", None) == longtail.Full()


@pytest.mark.parametrize(
    "name, settings, sentence",
    [
        ("LongTail", {"LongTail": {"alpha": 2}}, "LongTail.alpha must be between 0.01 and 1, got 2"),
        ("LongTail", {"LongTail": {"alpha": None}}, "LongTail.alpha must be a finite number, got None"),
        ("LongTail", {"LongTail": {"beta": 2}}, "LongTail has no parameter 'beta'"),
        ("LongTail", {"LongTail": 3}, "the parameters of LongTail must be given by name, got 3"),
        ("Nothing", {}, "there is no method 'Nothing'"),
    ],
)
def test_a_bad_setting_is_named(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        controls.chosen(name, settings)


# ---- pictures

VIEW = {"grid": [2, 2], "box": [0, 0, 1, 1]}


def record_of(role, source, span=(0, 0), lost=(), recycled=(), steps=((0, 0),), keep=(), views=(VIEW,)) -> dict:
    """As much of a record as a picture needs."""
    return {
        **{"role": list(role), "source": list(source), "visual_span": list(span), "lost": list(lost)},
        "positions": list(range(*span)),
        **{"recycled": [list(pair) for pair in recycled], "steps": [list(step) for step in steps]},
        **{"keep": list(keep), "views": list(views), "method": "Full", "answer": "", "curve": None, "order": None},
        "tile_curves": [],
    }


def pruned(**given) -> dict:
    """Patches 0 and 1 of a 2 x 2 grid survive and stand at 5 and 6 of the prompt, 2 is merged into 1, 3 is dropped."""
    return record_of(["kept", "kept", "merged", "dropped"], [0, 1, 1, -1], (5, 7), keep=[0, 1], **given)


def test_states_follow_the_source():
    assert draw.fates(pruned()).states().tolist() == ["kept", "kept", "merged", "dropped"]
    late = draw.fates(pruned(lost=[3, 6], steps=[[1, 0], [2, 1], [3, 2]]))
    assert late.states().tolist() == ["kept", "evicted", "evicted", "dropped"]
    assert late.left.tolist() == [-1, 2, 2, -1]
    assert [late.states(step)[1] for step in range(3)] == ["kept", "kept", "evicted"]
    both = draw.fates(pruned(recycled=[(5, 6)]))
    assert both.states().tolist() == ["merged", "kept", "merged", "dropped"] and both.group.tolist() == [1, 1, 1, -1]
    assert draw.given_up([3, 0, 6, 5, 7], (), [5, 6]) == ([0, 1], [])
    assert draw.given_up([9], [(5, 6), (6, 9), (7, 8)], [5, 6, 7, 8]) == ([0, 1], [2]), "lost with what spoke for them"


def test_masked_picture():
    crop = Image.new("RGB", (32, 32), (200, 30, 90))
    states = draw.fates(pruned(lost=[6], steps=[[0, 1]])).states()
    picture = np.asarray(draw.masked(crop, [VIEW], states))
    side = len(picture) // 2
    assert picture.shape == (2 * side, 2 * side, 3)
    inside = slice(side // 8, side // 5)  # a corner of a patch, clear of outline and cross
    kept, evicted = picture[:side, :side][inside, inside], picture[:side, side:][inside, inside]
    dropped = picture[side:, side:][inside, inside]
    assert (kept == (200, 30, 90)).all()
    assert np.ptp(dropped.astype(int), -1).max() <= 12, "a dropped patch has lost its colour"
    assert (evicted != kept).any() and (evicted != dropped).any()
    assert tuple(picture[side // 2, side + side // 2]) == draw.MARK, "an evicted patch is crossed, not only tinted"
    assert tuple(picture[side + side // 2, side]) == draw.EDGE, "what is kept is outlined"


def test_tokens_that_speak_for_others():
    """Patch 0 is kept, 1 recovered, 2 merged into a token that stands on no patch, 3 dropped."""
    record = record_of(["kept", "recovered", "merged", "dropped"], [0, 1, 2, -1], (0, 3), keep=[0, 1, -1])
    states = draw.fates(record).states()
    assert states.tolist() == record["role"]
    gone = draw.fates(record | {"lost": [2], "steps": [[0, 1]]})
    assert gone.states().tolist() == ["kept", "recovered", "evicted", "dropped"]
    crop = Image.new("RGB", (32, 32), (200, 30, 90))
    picture = np.asarray(draw.masked(crop, [VIEW], states))
    side = len(picture) // 2
    kept, recovered, merged = (picture[y, x].tolist() for y, x in ((9, 9), (9, side + 9), (side + 9, 9)))
    assert kept == recovered == [200, 30, 90]
    assert kept[1] < merged[1] < merged[0] - 50, "a merged patch is faded and keeps its colour"
    assert tuple(picture[side, side // 2]) == draw.EDGE, "a line parts what is kept from what was merged"
    assert tuple(picture[side // 2, side]) == tuple(picture[side, side + side // 2]) == draw.RECOVERED
    assert tuple(picture[side + side // 2, side]) not in (draw.EDGE, draw.RECOVERED), "what is not kept has no outline"


def test_nothing_dropped_is_the_crop_itself():
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    views = [{"grid": [6, 6], "box": [0, 0, 1, 1]}]
    assert np.array_equal(draw.masked(crop, views, np.full(36, "kept")), draw.enlarged(crop, views))


def test_tiles_are_drawn_in_place():
    """Two tiles side by side, 2 x 2 patches each: patch 5 is the second of the right one."""
    views = [{"grid": [2, 2], "box": [0, 0, 0.5, 1]}, {"grid": [2, 2], "box": [0.5, 0, 0.5, 1]}]
    places = draw.cells(views, 400, 200)
    assert places[0] == (0, 0, 100, 100) and places[3] == (100, 100, 200, 200) and places[5] == (300, 0, 400, 100)
    states = np.array(["kept"] * 5 + ["dropped"] + ["kept"] * 2)
    picture = np.asarray(draw.masked(Image.new("RGB", (64, 32), (200, 30, 90)), views, states))
    side = picture.shape[0] // 2
    assert picture.shape[1] == 2 * picture.shape[0]
    grey = [np.ptp(picture[side // 2, x * side + side // 2].astype(int)) <= 12 for x in range(4)]
    assert grey == [False, False, False, True]


def test_the_panel_has_all_that_a_record_says(llava, picture):
    answer = longtail.answer(llava, picture, "What?", LongTail(alpha=0.5), max_new_tokens=6)
    seen = json.loads(panel.view(answer.record()))
    (curve,) = seen["curves"]
    assert seen["role"] == answer.reduced[0].role.tolist() and curve["order"] == answer.curve.order.tolist()
    assert curve["similarity"] == answer.curve.similarity.tolist() and len(curve["figure"]["data"]) == 3
    assert curve["objective"] == pytest.approx(answer.curve.objective.tolist(), abs=1e-3)
    assert len(seen["said"]) == answer.tokens.generated
    assert any(token > 0 for token in seen["left"]), "stage 2 gives something up after the first token"
    merged = json.loads(panel.view(longtail.answer(llava, picture, "What?", make("ToMe"), max_new_tokens=1).record()))
    assert any(group >= 0 for group in merged["group"]) and merged["curves"] == [None]
    assert json.loads(panel.blank(None)) == {"views": [], "method": None}


# ---- figures and numbers


def test_similarity_figure():
    curve = long_tail(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.05, 0.04]), 0.5, "tail")
    record = {"similarity": curve.similarity.tolist(), "knee": curve.knee, "kept": curve.kept}
    figure = figures.similarity_curve(record)
    objective, head, tail = figure["data"]
    assert head["y"] + tail["y"][1:] == sorted(curve.similarity.tolist(), reverse=True)
    assert head["x"][-1] == tail["x"][0] == curve.knee
    assert int(np.argmax(objective["y"])) + 1 == curve.knee
    notes = [words.english(note["text"]) for note in figure["layout"]["annotations"]]
    assert notes == [f"knee i* = {curve.knee}", f"kept {curve.kept} of 6"]
    assert [shape["x0"] for shape in figure["layout"]["shapes"] if shape["type"] == "line"] == [curve.knee, curve.kept]
    assert figure["layout"]["yaxis"]["rangemode"] == figure["layout"]["yaxis2"]["rangemode"] == "tozero"


def test_numbers_add_up(llava, picture):
    answer = longtail.answer(llava, picture, "What?", LongTail(alpha=0.5), max_new_tokens=6)
    record = answer.record()
    assert sum(export_phases(record).values()) == pytest.approx(answer.seconds.total)
    table = words.english(numbers.table(record, 2 * answer.seconds.total))
    assert f"<b>{answer.tokens.visual}</b> of 36 visual tokens" in table
    widths = [float(part.split("%")[0]) for part in table.split('"latency"')[1].split("width:")[1:]]
    assert len(widths) == len(PHASES) and sum(widths) == pytest.approx(50, abs=0.1), "the bar starts at zero"
    heading = words.english(numbers.heading(record | {"turn": [2, 3]}))
    assert heading == "LongTail · alpha 0.5 · cut off at the limit of new tokens · ran 2 of 3"
    conditions = words.english(numbers.conditions([record | {"turn": [1, 1]}], 6, 0.0, 1))
    assert "greedy, at most 6 new tokens · n = 1" in conditions and conditions.endswith("shuffled: LongTail")
    assert "median (least to most) of 5" in words.english(numbers.conditions([record], 6, 0.5, 5))
    again = words.english(numbers.table(record | {"reused": ["vision"]}))
    assert '<li class="vision">vision <b>reused</b></li>' in again, "no stale time is shown as measured"


def test_rows_are_the_same_before_and_after(llava, picture):
    record = longtail.answer(llava, picture, "What?", max_new_tokens=2).record()
    names = [table.split("<th")[1:] for table in (numbers.table(None), numbers.table(record))]
    assert [row.split("</th>")[0] for row in names[0]] == [row.split("</th>")[0] for row in names[1]]


def test_overlaps_are_a_matrix():
    records = {
        i: pruned() | {"keep": keep, "method": name}
        for i, (keep, name) in enumerate([([0, 1], "Full"), ([1, 2, -1], "<b>"), ([3], "ToMe")])
    }
    matrix = numbers.overlaps(records)
    assert re.findall(r">(\d\.\d\d)<", matrix) == [
        "1.00",
        "0.33",
        "0.00",
        "0.33",
        "1.00",
        "0.00",
        "0.00",
        "0.00",
        "1.00",
    ]
    assert "<b>" not in matrix and numbers.overlaps({0: records[0]}) == ""


def test_arithmetic_is_labelled_and_follows_the_counts(llava, picture):
    sheet = arithmetic.Sheet()
    full, few = (
        longtail.answer(llava, picture, "What?", reducer, max_new_tokens=2).record()
        for reducer in (longtail.Full(), longtail.Random(budget=4))
    )
    lines = [words.english(sheet.line(record)) for record in (full, few)]
    flops = [float(re.search(r"prefill ([\d.]+) TFLOP", line)[1]) for line in lines]
    assert flops[0] > flops[1] > 0 and all(line.startswith("LLaVA-1.5-7B on A100-80, FP16") for line in lines)
    assert "Arithmetic, not measured" in words.english(numbers.table(full, 1, lines[0]))
    assert words.english(arithmetic.Sheet(gpu="T4").line(full)) != lines[0]
    with pytest.raises(ValueError, match="the arithmetic's GPU must be one of A100-40"):
        arithmetic.Sheet(gpu="abacus")


@pytest.mark.parametrize(
    "value, text", [(0, "0 ms"), (0.00123, "1.2 ms"), (0.0996, "100 ms"), (0.25, "250 ms"), (1.234, "1.23 s")]
)
def test_seconds(value, text):
    assert numbers.seconds(value) == text


@pytest.mark.parametrize(
    "value, text", [(0, "0 B"), (1536, "1.50 KiB"), (5 * 2**20, "5.00 MiB"), (3 * 2**30, "3.00 GiB")]
)
def test_size(value, text):
    assert numbers.size(value) == text


# ---- a comparison as it happens


def asked(picture, reducers, question="What is it?", **options):
    given = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0, "time_limit": 60} | options
    return board.Asked(picture, question, dict(enumerate(reducers)), **given)


def final(updates) -> dict:
    """What stands on the page in the end, in English."""
    shown = {}
    for parts in updates:
        shown |= parts
    return {key: words.english(value) if isinstance(value, str) else value for key, value in shown.items()}


def compared(llava, picture, reducers, **options) -> dict:
    return final(board.compare(threading.Event(), llava, asked(picture, reducers, **options)))


def said(shown: dict, column: int) -> str:
    """A column's own words: what is missing from the unpruned answer's is not."""
    return " ".join(part["text"] for part in shown[column, "answer"] if part["kind"] != "missing")


def test_compare_fills_every_column(llava, picture):
    shown = compared(llava, picture, [longtail.Full(), LongTail()])
    for column, method in enumerate(("Full", "LongTail")):
        alone = longtail.answer(llava, picture, "What is it?", make(method), max_new_tokens=5)
        assert said(shown, column).split() == alone.text.split()
        assert shown[column, "by"].startswith(method)
        assert f"<b>{alone.tokens.visual}</b> of 36" in shown[column, "numbers"]
        assert json.loads(shown[column, "panel"])["role"] == alone.reduced[0].role.tolist()
    assert json.loads(shown[0, "panel"])["curves"] == [None]
    assert json.loads(shown[1, "panel"])["curves"][0]["figure"]
    assert "n = 1" in shown[board.CONDITIONS] and shown[run.MESSAGE].startswith("Done")
    turns = [re.search(r"ran (\d) of 2", shown[column, "by"])[1] for column in (0, 1)]
    assert sorted(turns) == ["1", "2"]
    result = shown[board.RESULT]
    assert result.columns == (0, 1) and result.comparison.records[1]["versus"]["kl"] >= 0
    assert "versus" not in result.comparison.records[0]


def test_the_order_is_shuffled(llava, picture, monkeypatch):
    monkeypatch.setattr(board.random, "shuffle", lambda order: order.reverse())
    shown = compared(llava, picture, [longtail.Full(), LongTail(), longtail.Random(budget=3)], max_new_tokens=1)
    assert [shown[column, "by"].split("ran ")[1] for column in range(3)] == ["3 of 3", "2 of 3", "1 of 3"]
    assert shown[board.CONDITIONS].endswith("shuffled: Random, LongTail, Full")


def test_measuring_repeats_after_a_warm_up(llava, picture, monkeypatch):
    calls, engine = [], board.generate
    monkeypatch.setattr(board, "generate", lambda *a, **o: calls.append(type(a[3]).__name__) or engine(*a, **o))
    shown = compared(llava, picture, [longtail.Full(), LongTail()], repeat=3, max_new_tokens=2)
    assert len(calls) == 2 * (1 + 3), "one round warms up"
    assert all(set(calls[2 * turn : 2 * turn + 2]) == {"Full", "LongTail"} for turn in range(4)), "in rounds"
    assert "median (least to most) of 3" in shown[board.CONDITIONS] and "n = 1" not in shown[board.CONDITIONS]
    assert " to " in shown[1, "numbers"] and "ran" not in shown[1, "by"]
    record = shown[board.RESULT].comparison.records[1]
    low, high = record["spread"]["total"]
    assert record["repeat"] == 3 and low <= record["seconds"]["total"] <= high


def test_differences_to_the_unpruned_answer(monkeypatch, llava, picture):
    engine = board.generate

    def generate(*arguments, **options):
        text = "a small red square" if type(arguments[3]).__name__ == "Full" else "a red circle here"
        for answer in engine(*arguments, **options):
            object.__setattr__(answer, "text", text)
            yield answer

    monkeypatch.setattr(board, "generate", generate)
    shown = compared(llava, picture, [LongTail(), longtail.Full()])
    assert [(part["kind"], part["text"]) for part in shown[0, "answer"]] == [
        *[("same", "a"), ("missing", "small"), ("same", "red"), ("missing", "square"), ("added", "circle here")]
    ]
    assert [part["kind"] for part in shown[1, "answer"]] == ["same"]
    assert "50 %" in shown[0, "numbers"]


def test_a_follow_up_reuses_the_tower(llava, picture):
    first = compared(llava, picture, [longtail.Full(), LongTail()])[board.RESULT]
    reducers = [longtail.Full(), LongTail(), longtail.Random(budget=3)]
    shown = compared(llava, picture, reducers, question="And now?", after=first)
    records = shown[board.RESULT].comparison.records
    assert [record["reused"] for record in records] == [["vision"], ["vision"], []]
    assert records[1]["history"] == [["What is it?", first.answers[1].text]] and records[2]["history"] == []
    assert "vision <b>reused</b>" in shown[1, "numbers"] and "the vision tower was reused" in shown[run.MESSAGE]
    assert "What is it?" in shown[1, "turns"] and shown[2, "turns"] == ""
    other = compared(llava, picture, [LongTail(), longtail.Full()], question="And now?", after=first)
    assert not other[board.RESULT].comparison.records[0]["history"], "another method's talk is not this one's"


@pytest.mark.parametrize("name", REDUCERS)
def test_every_method_has_its_column(llava, picture, name):
    """It is drawn, patch by patch, or says what it lacks."""
    shown = compared(llava, picture, [make(name)])
    if shown[0, "refusal"]:
        assert "no CLIP text tower" in shown[0, "refusal"] and shown[0, "by"] == f"{name} · could not run"
        return
    seen = json.loads(shown[0, "panel"])
    assert shown[0, "by"].startswith(name) and len(seen["role"]) == len(seen["group"]) == len(seen["left"]) == 36
    assert "of 36 visual tokens" in shown[0, "numbers"] and "TFLOP" in shown[0, "numbers"]


def test_what_the_language_model_drops_is_crossed(llava, picture):
    @dataclass(frozen=True)
    class Early(Reducer):
        """Drops the first 30 visual tokens before layer 1."""

        def drop(self, prefill):
            gone = prefill.visual & (prefill.visual.cumsum(0) <= 30)
            return (~gone).nonzero().flatten() if prefill.layer == 1 else None

    shown = compared(llava, picture, [Early()])
    seen = json.loads(shown[0, "panel"])
    assert seen["left"] == [0] * 30 + [-1] * 6, "gone before the first token"
    assert "30, 30 visual" in shown[0, "numbers"] and "<b>36</b> of 36" in shown[0, "numbers"]
    assert "16 visual" in shown[0, "numbers"], "36 enter the first layer, 6 the two others"


@dataclass(frozen=True)
class Choosy(Reducer):
    """Wants what the model lacks."""

    def reduce(self, visual):
        raise ValueError("this model has no CLIP text tower")


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_method_that_cannot_run_says_so_and_the_others_answer(llava, picture, repeat):
    shown = compared(llava, picture, [longtail.Full(), Choosy(), LongTail()], repeat=repeat)
    assert shown[1, "refusal"] == "This model has no CLIP text tower."
    assert shown[1, "by"] == "Choosy · could not run" and shown[1, "answer"] == []
    assert shown[0, "refusal"] == shown[2, "refusal"] == "" and said(shown, 0) and said(shown, 2)
    assert shown[run.MESSAGE] == "Done, but 1 of 3 could not run: the column says why." and not shown[run.TROUBLE]
    alone = compared(llava, picture, [Choosy()])
    assert alone[0, "refusal"] and alone[board.CONDITIONS].startswith("one to four methods")


def test_a_question_no_method_could_answer_is_refused_once(llava, picture):
    updates = board.compare(threading.Event(), llava, asked(picture, [longtail.Full(), Choosy()], question=" "))
    with pytest.raises(ValueError, match="the question is empty"):
        next(updates)


def test_time_limit_is_said(llava, picture):
    shown = compared(llava, picture, [longtail.Full()], time_limit=0)
    assert "cut off at the time limit" in shown[0, "by"]


# ---- columns as values


def test_presets_are_real():
    for specs, budget in presets.PRESETS.values():
        reducers = presets.Lanes.of(list(specs)).reducers(budget)
        assert len(reducers) == len(specs) and type(reducers[0]).__name__ == "Full"
    stages = presets.Lanes.of(list(presets.PRESETS["preset_stages"][0])).reducers()
    assert [(r.visual_stage, r.text_stage) for r in list(stages.values())[1:]] == [
        (True, False),
        (False, True),
        (True, True),
    ]


def test_lanes_come_and_go():
    lanes = presets.Lanes.of(["LongTail:alpha=0.3"])
    assert lanes.shown == [True, False, False, False] and lanes.reducers() == {0: LongTail(alpha=0.3)}
    two = lanes.having("Manual", {"patches": "0-3"})
    assert two.shown == [True, True, False, False] and two.reducers()[1] == make("Manual", patches="0-3")
    full = presets.Lanes.of(["Full"] * 4).having("Random")
    assert full.methods == ["Full", "Full", "Full", "Random"]
    assert two.having("Manual", {"patches": "5"}, 1).reducers()[1] == make("Manual", patches="5")
    for specs, sentence in (([], "1 to 4 columns, got 0"), (["Full"] * 5, "got 5"), (["Nope"], "no method 'Nope'")):
        with pytest.raises(ValueError, match=sentence):
            presets.Lanes.of(specs)


@pytest.mark.parametrize("name", REDUCERS)
def test_an_equal_budget_is_the_methods_own_at(name):
    """Whatever the column had set, the budget decides what it decides; the rest stays."""
    assert presets.equal(name, {}, 12) == REDUCERS[name].at(12)


def test_an_equal_budget_overrules_a_columns_own():
    settings = {"LongTail": {"budget": 99, "heavy": 0.25, "alpha": 0.9}}
    assert presets.equal("LongTail", settings, 12) == LongTail(budget=12, heavy=0.25, alpha=0.9)
    with pytest.raises(ValueError, match="heavy must be between"):
        presets.equal("LongTail", {"LongTail": {"heavy": 7}}, 12)


# ---- the address


SCENES = [examples.Example("/x/a-ring.png", "What?", "ring", "a ring"), examples.Example("/x/b.png", "Who?", "", "")]


def test_a_link_sets_everything():
    asked = link.linked(
        [
            ("m", "LongTail:alpha=0.3"),
            ("m", "Full"),
            ("example", "b"),
            ("q", "Why?"),
            ("budget", "64"),
            ("temperature", "0.5"),
        ],
        SCENES,
    )
    assert asked.lanes.reducers() == {0: LongTail(alpha=0.3), 1: longtail.Full()}
    assert asked.scene is SCENES[1] and asked.question == "Why?" and asked.tab is None
    assert asked.fields == {"budget": 64, "temperature": 0.5}
    nothing = link.linked([("utm", "x"), ("__theme", "dark")], SCENES)
    assert nothing == link.Linked(None, None, None, {}, None)


@pytest.mark.parametrize(
    "pairs, sentence",
    [
        ([("m", "Nope")], "there is no method 'Nope'"),
        ([("m", "LongTail:alpha=9")], "LongTail.alpha must be between 0.01 and 1, got 9"),
        ([("m", "LongTail:alpha=<script>")], "LongTail.alpha must be a number"),
        ([("m", "Full")] * 5, "there are 1 to 4 columns, got 5"),
        ([("example", "../../etc/passwd")], "example must be one of a-ring, b, got '../../etc/passwd'"),
        ([("tab", "admin")], "tab must be one of compare"),
        ([("budget", "nan")], "budget must be a number between 0 and 576, got 'nan'"),
        ([("budget", "1.5")], "budget must be a number between 0 and 576, got '1.5'"),
        ([("gpu", "abacus")], "gpu must be one of A100-40"),
        ([("methods", "TopK,Nope")], "methods must be one of Full"),
        ([("over", "__class__")], "over must be one of alpha"),
        ([("seed", "-1")], "seed must be a number between 0"),
        ([("new", "1e400")], "new must be a number"),
        ([("q", "x" * 9000)], "the link is too long"),
    ],
)
def test_a_hostile_link_is_a_sentence(pairs, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        link.linked(pairs, SCENES)


# ---- files


def test_a_result_is_exported_and_opened_again(llava, picture, tmp_path):
    result = compared(llava, picture, [longtail.Full(), LongTail(alpha=0.5), make("ToMe")])[board.RESULT]
    for ending in (".json", ".html"):
        file = json.loads(export.packed(result, ending))
        path = tmp_path / file["name"]
        path.write_bytes(base64.b64decode(file["data"]))
        again = export.replayed(str(path))
        assert again.comparison.crop.tobytes() == result.comparison.crop.tobytes() and again.answers == {}
        before = board.standing(result, arithmetic.Sheet())
        after = board.standing(again, arithmetic.Sheet())
        assert {k: v for k, v in after.items() if k != board.RESULT} == {
            k: v for k, v in before.items() if k != board.RESULT
        }
        for mine, theirs in zip(again.comparison.records, result.comparison.records, strict=True):
            assert json.loads(panel.view(mine)) == json.loads(panel.view(theirs))
    rows = base64.b64decode(json.loads(export.packed(result, ".csv"))["data"]).decode().splitlines()
    assert len(rows) == 4 and rows[0].startswith("method,answer") and "agreement" in rows[0]


def test_a_column_as_a_picture(llava, picture):
    result = compared(llava, picture, [longtail.Full(), LongTail(alpha=0.5)])[board.RESULT]
    file = json.loads(export.column(result, 1))
    image = Image.open(io.BytesIO(base64.b64decode(file["data"])))
    assert file["name"] == "longtail-LongTail.png" and image.width == export.WIDTH
    other = json.loads(export.column(result, 0))
    assert other["data"] != file["data"]
    for given, at, sentence in (
        (None, 0, "nothing to export yet"),
        (result, 3, "nothing was answered in this column"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export.column(given, at)


def test_long_words_are_wrapped():
    font = ImageFont.load_default(24)
    rows = export._wrapped("short " + "x" * 400 + " end", font)
    assert "".join(rows).replace(" ", "") == "short" + "x" * 400 + "end"
    assert all(font.getlength(row) <= export.WIDTH for row in rows)


async def _taken(event, most: int = 10**6):
    taken, items = [], event()
    async for item in items:
        taken.append(item)
        if len(taken) == most:
            break
    await items.aclose()
    return taken


def test_what_ends_the_event_ends_the_work():
    closed = threading.Event()

    def endless(stop):
        try:
            while True:
                yield {"n": 1}
        finally:
            closed.set()

    assert len(asyncio.run(_taken(run.streamed(endless), 3))) == 3
    assert closed.is_set() and not working()


def test_a_stop_ends_the_visitors_own_work_whatever_gradio_cancels():
    line, seen = Line(), {"ada": [], "bob": []}

    def asks(name, updates):
        async def visit():
            LocalContext.request.set(gr.Request(session_hash=name))
            async for item in run.streamed(lambda stop: updates, dict, run.Job("run", line))():
                seen[name].append(item)

        return asyncio.create_task(visit())

    def stops(name):
        async def press():
            LocalContext.request.set(gr.Request(session_hash=name))
            await line.halt("run")

        return asyncio.create_task(press())

    async def both():
        bob = asks("bob", ({"n": 1} for _ in count()))
        while not seen["bob"]:
            await asyncio.sleep(0.01)
        ada = asks("ada", ({"n": i} for i in range(3)))
        await stops("carol")
        assert len(line.of("ada")) == len(line.of("bob")) == 1 and not any("n" in it for it in seen["ada"]), "she waits"
        await stops("bob")
        await asyncio.wait_for(asyncio.gather(ada, bob), 20)

    asyncio.run(both())
    assert [it["n"] for it in seen["ada"] if "n" in it] == [0, 1, 2] and not line.busy and not working()


def test_the_worker_waits_for_the_page():
    made = []

    def counting(stop):
        for i in range(5):
            made.append(i)
            yield {"i": i}

    async def ahead():
        most = 0
        async for item in run.streamed(counting)():
            await asyncio.sleep(0.02)
            most = max(most, len(made) - item["i"])
        return most

    assert asyncio.run(ahead()) == 1


def test_an_error_is_a_sentence_and_the_next_run_works(caplog):
    def broken(stop, error):
        yield {"n": 1}
        raise error

    def sentence(error):
        async def last():
            return [item async for item in run.streamed(broken)(error)][-1][run.TROUBLE]

        return asyncio.run(last())

    assert sentence(ValueError("alpha is too large")) == "Alpha is too large."
    assert "emory ran out" in sentence(torch.OutOfMemoryError("17 GiB"))
    assert not caplog.records
    assert "RuntimeError" in sentence(RuntimeError("/secret/path")) and "secret" not in sentence(RuntimeError("secret"))
    assert "secret" in caplog.text, "the log has the cause"
    assert asyncio.run(_taken(run.streamed(lambda stop: ({i: i} for i in (1, 2))))) == [{1: 1}, {2: 2}]
    assert not working()


# ---- serving


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--port", "many"], "must be a whole number between 1 and 65535, got 'many'"),
        (["--time-limit", "0"], "must be a whole number between 1 and 3600, got '0'"),
        (["--quantization", "int3"], "quantization must be one of none, int8, int4, got 'int3'"),
        (["--dtype", "half"], "dtype must be one of"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--model", "no-such-model"], "there is no model 'no-such-model'"),
        (["--modle", "tiny"], "unrecognized arguments: --modle"),
    ],
)
def test_a_bad_flag_is_one_sentence(capsys, flags, sentence):
    assert app.main(flags) == 2
    out, err = capsys.readouterr()
    assert sentence in err and len(err.strip().splitlines()) == 1 and not out


def test_flags_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LONGTAIL_TIME_LIMIT", "7")
    monkeypatch.setenv("LONGTAIL_MODEL", "somewhere")
    assert (app.parsed([]).time_limit, app.parsed([]).model) == (7, "somewhere")
    assert app.parsed(["--time-limit", "9"]).time_limit == 9
    assert app.parsed([]).share is False and app.parsed(["--share"]).share is True


def test_examples_are_there():
    found = examples.read_examples()
    assert len(found) >= 12
    for example in found:
        assert longtail.open_image(example.image) and example.question and example.answer and example.note


def test_four_endpoints_are_public(llava, scenes):
    """What the page itself does is its own: tests/test_api.py has the rest."""
    built = page.build(llava, examples=scenes)
    named = [fn.api_name for fn in built.fns.values() if fn.api_visibility == "public"]
    assert sorted(named) == ["answer", "compare", "methods", "preview"]
