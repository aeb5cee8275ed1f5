"""A preview on the page: every column at once, the answers that Run gives, and no time anywhere."""

import csv
import io
import json
import re
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import idle, press, says, slowly
from test_page import Choosy, asked, compared, final, said

import longtail
from demo import board, export, numbers, preview, run, space, words
from longtail import LongTail
from longtail.export import WRITERS, medians

TIME = re.compile(r"\d\s?(ms|s)\b|\d×")
WHY = "Preview: all methods at once, sharing the tower and the decode steps; press Run or Measure for times"


@pytest.fixture
def reducers():
    return [longtail.Full(), LongTail(alpha=0.5), longtail.Random(budget=9)]


def previewed(llava, picture, reducers, engine=None, **options) -> dict:
    return final(preview.preview(threading.Event(), llava, asked(picture, reducers, **options), engine))


def test_it_says_what_a_run_says_and_no_time(llava, picture, reducers):
    shown, ran = previewed(llava, picture, reducers), compared(llava, picture, reducers)
    for column in range(3):
        assert said(shown, column) == said(ran, column)
        assert json.loads(shown[column, "panel"])["role"] == json.loads(ran[column, "panel"])["role"]
        counts, times = shown[column, "numbers"].split("Time to first token")
        assert counts == ran[column, "numbers"].split("Time to first token")[0]
        assert not TIME.search(times.partition("Arithmetic")[0]) and times.count("–") >= 3 + len(numbers.PHASES)
        assert "ran" not in shown[column, "by"] and ">Preview</li>" in times
    assert shown[board.OVERLAPS] == ran[board.OVERLAPS] and shown[run.MESSAGE].startswith("Done")
    assert shown[board.CONDITIONS].endswith(WHY) and "n = 1" not in shown[board.CONDITIONS]
    ours, theirs = (it[board.RESULT].comparison.records for it in (shown, ran))
    for name in ("agreement", "kl"):
        assert [r.get("versus", {}).get(name) for r in ours] == pytest.approx(
            [r.get("versus", {}).get(name) for r in theirs]
        )


def test_all_columns_stream_at_once(llava, picture, reducers, monkeypatch):
    monkeypatch.setattr(board, "UPDATE_EVERY", -1)
    begun, ended = {}, {}
    updates = preview.preview(threading.Event(), llava, asked(picture, reducers, max_new_tokens=8))
    for at, parts in enumerate(updates):
        for column in range(3):
            if parts.get((column, "answer")):
                begun.setdefault(column, at)
                ended[column] = at
    assert max(begun.values()) < min(ended.values())


def test_a_method_that_cannot_run_says_so(llava, picture):
    shown = previewed(llava, picture, [longtail.Full(), Choosy(), LongTail()])
    assert shown[1, "refusal"] == "This model has no CLIP text tower." and shown[1, "by"] == "Choosy · could not run"
    assert said(shown, 0) and said(shown, 2)
    assert shown[run.MESSAGE] == "Done, but 1 of 3 could not run: the column says why."


def test_a_question_nobody_could_answer_leaves_the_columns_alone(llava, picture, reducers):
    updates = preview.preview(threading.Event(), llava, asked(picture, reducers, question=" "))
    with pytest.raises(ValueError, match="the question is empty"):
        next(updates)


def test_its_time_limit_is_that_of_the_columns_together(llava, picture, reducers, monkeypatch):
    given = {}

    def nothing(*_, **options):
        yield from given.update(options) or ()

    monkeypatch.setattr(longtail, "preview", nothing)
    list(preview.together(llava, picture, "What is it?", dict(enumerate(reducers)), 1, {}, {"time_limit": 5}, None))
    assert given["time_limit"] == 15
    monkeypatch.undo()
    shown = previewed(llava, picture, reducers, time_limit=1e-9)
    assert all("cut off at the time limit" in shown[column, "by"] for column in range(3))


def test_no_file_has_a_time_and_a_replay_is_marked(llava, picture, reducers, tmp_path):
    result = previewed(llava, picture, reducers)[board.RESULT]
    rows = list(csv.DictReader(io.StringIO(WRITERS[".csv"](result.comparison))))
    assert not any(value for row in rows for name, value in row.items() if name.startswith("seconds_"))
    assert all(WHY in row["conditions"] for row in rows) and rows[1]["agreement"]
    html = WRITERS[".html"](result.comparison)
    assert WHY in html and not TIME.search(re.sub("<style>.*?</style>|<template.*?</template>", "", html))
    assert not export._times(result.comparison.records[0])
    for ending in (".json", ".html"):
        (tmp_path / f"file{ending}").write_text(WRITERS[ending](result.comparison))
        again = export.replayed(str(tmp_path / f"file{ending}"))
        assert WHY in again.comparison.conditions and all(record["shared"] for record in again.comparison.records)
        record = again.comparison.records[1] | {"seconds": dict.fromkeys(longtail.export.TIMES, 1.5)}
        assert "1.50" not in numbers.table(record), "whatever a file says"


def test_a_follow_up_after_it(llava, picture, reducers):
    first = previewed(llava, picture, reducers)[board.RESULT]
    shown = compared(llava, picture, reducers, question="And now?", after=first)
    records = shown[board.RESULT].comparison.records
    assert [record["reused"] for record in records] == [["vision"]] * 3 and not any("shared" in r for r in records)
    assert records[1]["history"] == [["What is it?", first.answers[1].text]] and "n = 1" in shown[board.CONDITIONS]


def test_it_runs_where_a_gpu_is_lent(llava, picture, reducers):
    """As packets from another process, which `stop` ends."""

    def lent(task, seconds, stop, *given):
        def packets(*_):
            yield from space.beating(lambda own: task(llava, *given, stop=own), 60)

        return space.received(packets, stop)

    shown, here = previewed(llava, picture, reducers, lent), previewed(llava, picture, reducers)
    assert [said(shown, column) for column in range(3)] == [said(here, column) for column in range(3)]


def test_graphs_and_fast_pixels_are_conditions(llava, picture):
    record = medians([longtail.answer(llava, picture, "What is it?", max_new_tokens=2).record()])
    replayed = record | {"graphs": ["vision", "decode"], "pixels": "fast"}
    plain, told = (words.english(numbers.conditions([one], 2, 0.0, 1)) for one in (record, replayed))
    assert "float32 ·" in plain and "float32, fast pixels, tower, decode as CUDA graphs ·" in told


# ---- in a browser


def test_on_the_page(visit, monkeypatch):
    tab = visit(query="?m=Full&m=LongTail&m=Random:budget=9")
    says(tab, "Set as the link says")
    tab.get_by_role("button", name="Preview", exact=True).press("Enter")
    says(tab, "Done")
    expect(tab.locator("#conditions")).to_contain_text(WHY)
    for column in (1, 2, 3):
        lane = tab.locator(f"#column-{column}")
        expect(lane.locator(".answer p")).not_to_have_text("")
        expect(lane.locator(".phases .badge")).to_have_text("Preview")
        assert lane.locator(".phases b").all_inner_texts() == ["–"] * len(numbers.PHASES)
        assert not TIME.search(lane.locator(".rows").inner_text())
    expect(tab.locator("#column-3 p.kept")).to_contain_text("9 of 36")
    expect(tab.locator("#overlaps td")).to_have_count(10)
    assert "m=Full" in tab.url and "Random%3Abudget%3D9" in tab.url
    answer = " ".join(tab.locator("#column-1 .answer span").all_inner_texts())
    tab.get_by_label("Question").fill("And what else?")
    press(tab, "Follow up")
    says(tab, "Followed up")
    assert tab.locator("#column-1 .turns dd").text_content().strip() == answer.strip()
    expect(tab.locator("#conditions")).to_contain_text("n = 1")
    with monkeypatch.context() as patch:
        slowly(patch, each=0.2, name="preview", of=longtail)
        press(tab, "Preview")
        says(tab, "all 3 methods answer at once")
        expect(tab.locator("#column-3 .answer span").first).not_to_have_text("")
        press(tab, "Stop")
        says(tab, "Stopped")
        idle()
