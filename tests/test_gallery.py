"""Recorded runs: ours are reports of this code, any folder's are shown, and one click, key or link replays them."""

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import refuses, says, served
from playwright.sync_api import expect

import app
import longtail
from demo import board, export, gallery, link
from demo.arithmetic import Sheet
from longtail.__main__ import parser
from longtail.export import measure, write
from longtail.reducer import spec

AGAIN = "the record has changed: run `python -m demo.gallery`"


@pytest.fixture(scope="module")
def folder_of_two(llava, picture, tmp_path_factory):
    """Two comparisons of the random model, as a visitor would export them."""
    folder = tmp_path_factory.mktemp("recorded")
    for name, methods in (("first", [longtail.Full(), longtail.LongTail(alpha=0.5)]), ("second.b", [longtail.TopK()])):
        comparison = measure(llava, picture, f"<b>{name}</b>?", methods, max_new_tokens=6)
        write(comparison, str(folder / f"{name}.{'json' if name == 'first' else 'html'}"))
    return folder


# ---- ours


def test_ours_are_all_there_and_small():
    recorded = gallery.read_recorded()
    assert list(recorded) == list(gallery.RUNS) and len(recorded) >= 6
    assert sum(path.stat().st_size for path in gallery.RECORDED.iterdir()) < 1_500_000


@pytest.mark.parametrize("name", gallery.RUNS)
def test_ours_name_their_conditions(name):
    comparison = export.replayed(str(gallery.RECORDED / f"{name}.json")).comparison
    arguments = parser(argv := gallery.command(name)).parse_args(argv)
    for record, method in zip(comparison.records, arguments.methods.split(","), strict=True):
        assert (record["model"], record["dtype"], record["device"]) == ("tiny", "float32", "cpu")
        assert record["repeat"] == gallery.REPEAT and record["question"] == [arguments.question, *arguments.then][-1]
        assert record["method"] == method.split(":")[0]
    assert re.match(r"tiny, float32 on .+ CPU, \d+ threads; after one warm-up", comparison.conditions)
    assert re.search(r"; \d{4}-\d\d-\d\d$", comparison.conditions)


def test_ours_are_what_this_code_records(tiny):
    name = "main-paper"
    asked = parser(argv := gallery.command(name)).parse_args(argv)
    file = json.loads((gallery.RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    fresh = measure(tiny, gallery.ROOT / asked.image, asked.question, [longtail.Full(), longtail.LongTail()])
    for mine, theirs in zip(fresh.records, file["answers"], strict=True):
        assert mine.keys() | {"spread"} == theirs.keys(), AGAIN
        for key in ("answer", "params", "tokens", "views", "role", "lost"):
            assert mine[key] == theirs[key], AGAIN
    assert fresh.file()["crop"] == file["crop"], AGAIN


def test_the_folders_card_has_the_commands():
    card = (gallery.RECORDED / "README.md").read_text(encoding="utf-8")
    assert card == gallery.readme(), "run `python -m demo.gallery`"
    for name, commands in zip(gallery.RUNS, re.findall(r"```sh\n(.*?)\n```", card, re.S)[1:], strict=True):
        assert shlex.split(commands) == [".venv/bin/python", "-m", "longtail", *gallery.command(name)]


def test_they_show_what_they_are_for():
    records = {name: export.replayed(str(run.path)).comparison.records for name, run in gallery.read_recorded().items()}
    assert any(record["lost"] for record in records["stages"]) and records["follow-up"][0]["reused"] == ["vision"]
    assert {"merged"} <= {role for record in records["merging"] for role in record["role"]}
    assert [r["tokens"]["visual"] for r in records["language-model"]] == [576] * 4
    assert len({r["answer"] for r in records["text-guided"]}) == 2


# ---- any folder's


def test_a_recorded_run_stands_as_it_was_recorded(folder_of_two):
    written = json.loads((folder_of_two / "first.json").read_text())
    result = export.replayed(str(gallery.read_recorded(folder_of_two)["first"].path))
    again = board.standing(result, Sheet())
    for column, record in enumerate(written["answers"]):
        numbers = again[column, "numbers"]
        assert f"<b>{record['tokens']['visual']}</b> of 36" in board.english(numbers)
        said = [part["text"] for part in again[column, "answer"] if part["kind"] != "missing"]
        assert " ".join(said).split() == record["answer"].split()
    lanes = export.lanes(result.comparison)
    assert [spec(reducer) for reducer in lanes.reducers().values()] == ["Full", "LongTail:alpha=0.5"]


def test_what_cannot_be_shown_is_left_out_and_logged(folder_of_two, tmp_path, caplog):
    good = (folder_of_two / "first.json").read_text()
    of = {
        "b.json": good,
        "a.html": "<html>no report",
        "b.html": (folder_of_two / "second.b.html").read_text(),
        "d.json": good.replace('"alpha": 0.5', '"alpha": 50'),
        "e.json": good.replace('"kept"', '"gone"'),
        "notes.txt": good,
    }
    for name, text in of.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        assert list(gallery.read_recorded(tmp_path)) == ["b"]
    left = [record.getMessage() for record in caplog.records]
    assert len(left) == 6 and all("\n" not in line for line in left)
    for name, cause in (
        ("a.html", "this is no report"),
        ("b.json", "b.html has its name already"),
        ("d.json", "LongTail.alpha must be between"),
        ("e.json", "input should be 'kept'"),
        ("folder.json", "directory"),
        ("gone.json", "No such file"),
    ):
        assert any(line.startswith(f"the recorded run {name} is left out: ") and cause in line for line in left), name
    assert gallery.read_recorded(tmp_path / "nowhere") == {}


def test_a_link_names_a_recorded_run():
    assert link.linked([("recorded", "b")], [], ["a", "b"]).recorded == "b"
    with pytest.raises(ValueError, match=r"recorded must be one of a, b, got '\.\./b'"):
        link.linked([("recorded", "../b")], [], ["a", "b"])
    with pytest.raises(ValueError, match="recorded must be one of none"):
        link.linked([("recorded", "b")], [])


def test_the_folder_is_a_flag(capsys, tmp_path, monkeypatch):
    assert app.parsed([]).recorded == gallery.RECORDED
    assert app.parsed(["--recorded", str(tmp_path)]).recorded == tmp_path
    monkeypatch.setenv("LONGTAIL_RECORDED", str(tmp_path))
    assert app.parsed([]).recorded == tmp_path
    assert app.main(["--recorded", str(tmp_path / "nowhere")]) == 2
    assert "must be a folder, got" in capsys.readouterr().err


# ---- on the page


def test_a_page_without_a_model_shows_them_first(visit, scenes, folder_of_two):
    with served(None, scenes, recorded=folder_of_two) as address:
        tab = visit(address=address)
        says(tab, "Replayed from first.json: nothing was computed now.")  # at once: there is nothing else to see
        cards = tab.locator("#recorded [data-recorded]")
        expect(cards).to_have_count(2)
        expect(cards.first).to_be_visible()
        expect(cards.first.locator("b")).to_have_text("<b>first</b>?")
        expect(cards.first).to_have_attribute("aria-pressed", "true")
        expect(tab.locator("#column-2 .by p")).to_contain_text("LongTail · alpha 0.5")
        expect(tab.locator("#conditions [data-run]")).to_have_text("recorded")
        for asks in ("#run", "#ask-image", "#ask-examples", "#presets"):
            expect(tab.locator(asks)).to_be_hidden()
        cards.last.press("Enter")
        says(tab, "Replayed from second.b.html")
        expect(cards.last).to_have_attribute("aria-pressed", "true")
        expect(cards.first).to_have_attribute("aria-pressed", "false")
        expect(tab.locator("#column-2")).to_be_hidden()
        assert "recorded=second.b" in tab.url
        other = visit(390, address=address, query=f"?{tab.url.split('?')[1]}")
        says(other, "Replayed from second.b.html")
        expect(other.get_by_label("Question")).to_have_value("<b>second.b</b>?")
        assert other.evaluate("document.documentElement.scrollWidth") <= 390
        other.locator("[data-recorded=first]").click()
        says(other, "Replayed from first.json")
        found = Axe().run(other, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).response
        assert [(v["id"], [node["html"][:160] for node in v["nodes"]]) for v in found["violations"]] == []
        lost = visit(address=address, query="?recorded=third")
        refuses(lost, "The link could not be followed: recorded must be one of first, second.b, got 'third'")


def test_beside_a_model_they_are_a_closed_row(llava, visit, scenes, folder_of_two, monkeypatch):
    with served(llava, scenes, recorded=folder_of_two) as address:
        tab = visit(address=address, color_scheme="dark")
        card = tab.locator("[data-recorded=first]")
        expect(card).to_be_hidden()
        expect(tab.get_by_label("Question")).to_have_value("Is it red?")
        with monkeypatch.context() as patch:
            patch.setattr(board, "generate", None)  # nothing is asked
            tab.locator("#recorded summary").press("Enter")
            card.click()
            says(tab, "Replayed from first.json")
            expect(tab.locator("#column-2 p.kept")).to_contain_text("of 36 visual tokens")
        expect(card).to_have_attribute("aria-pressed", "true")
        tab.wait_for_function("location.search.includes('recorded=first')")
        found = Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).response
        assert [(v["id"], [node["html"][:160] for node in v["nodes"]]) for v in found["violations"]] == []
        tab.locator("[data-example='1']").click()
        expect(card).to_have_attribute("aria-pressed", "false")
        tab.wait_for_function("!location.search.includes('recorded=')")
        tab.get_by_role("button", name="Run", exact=True).click()
        says(tab, "Done")
        expect(tab.locator("#conditions [data-run]")).to_have_count(0)


def test_an_empty_folder_is_no_row(visit, scenes, tmp_path):
    with served(None, scenes, recorded=Path(tmp_path)) as address:
        tab = visit(address=address)
        says(tab, "Open a recorded run, or replay a report of yours.")
        expect(tab.locator("#recorded")).to_have_count(0)
        tab.close()  # before its server: what it still fetches would be refused
