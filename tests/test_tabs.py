"""The Sweep and Results tabs: their figures and readers as functions, then both in a real browser."""

import json
import re
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from demo import chart, fronts, look, table, words
from demo import results as results_tab
from demo import sweep as sweep_tab
from demo.examples import read_examples
from demo.host import Host
from longtail import results, sweep
from longtail.front import summary
from longtail.points import plan

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "assets" / "tiny" / "results.json"
expect.set_options(timeout=40_000)  # a loaded machine is no failure


# ---- a file that anybody may have written


def row(**changes):
    fine = {"method": "TopK", "budget": 8, "params": {}, "scenes": 2, "questions": 9, "visual": 8.0, "tokens": 8.0,
            "mean": 0.5, "mean_95": [0.4, 0.6], "share": 0.5, "share_95": [0.4, 0.6], "agreement": None,
            "first_token": 0.1, "total": 0.2, "of_full": 0.9, "families": {"exist": [0.5, 9]}}  # fmt: skip
    return fine | changes


def record(*rows, **changes):
    return {"conditions": "made up", "timed": ["here"], "weights": "0", "rows": list(rows)} | changes


def without(name):
    return {key: value for key, value in row().items() if key != name}


def test_what_evaluate_wrote_is_read_whole():
    written = json.loads(RESULTS.read_text())
    read = results.read(RESULTS)
    assert read["conditions"] == written["conditions"] and len(read["rows"]) == len(written["rows"]) > 100
    for ours, theirs in zip(read["rows"], written["rows"], strict=True):
        assert ours == {key: value for key, value in theirs.items() if key != "params"}


def test_what_is_not_known_is_left_behind(tmp_path):
    path = tmp_path / "more.json"
    path.write_text(json.dumps(record(row(extra="<script>"), {"method": "A", "budget": None, "reason": "no"}, more=1)))
    read = results.read(path)
    assert set(read) == {"conditions", "timed", "rows"} and "extra" not in read["rows"][0]
    assert read["rows"][1] == {"method": "A", "budget": None, "reason": "no"}


HOSTILE = {
    "words": ("I am no JSON", "at its beginning, invalid json"),
    "deep": ("[" * 100_000, "at its beginning, invalid json: recursion limit exceeded"),
    "digits": ("9" * 10_000, "at its beginning, "),
    "list": ("[]", "at its beginning, input should be an object"),
    "empty": ("{}", "at conditions, field required"),
    "no rows": (json.dumps(record()), "at rows, list should have at least 1 item"),
    "a number": (json.dumps(record(row(), 3)), "at rows.1, input should be an object"),
    "conditions": (json.dumps(record(row(), conditions=["x"])), "at conditions, input should be a valid string"),
    "no mean": (json.dumps(record(without("mean"))), "at rows.0.mean, field required"),
    "nan": (json.dumps(record(row(mean=float("nan")))), "at rows.0.mean, input should be a finite number"),
    "infinite": (json.dumps(record(row(of_full=float("inf")))), "at rows.0.of_full, input should be a finite number"),
    "huge": (json.dumps(record(row(tokens=10**400))), "at rows.0.tokens, input should be"),
    "above": (json.dumps(record(row(share=1.5))), "at rows.0.share, input should be less than or equal to 1"),
    "true": (json.dumps(record(row(share=True))), "at rows.0.share, input should be a valid number"),
    "text": (json.dumps(record(row(share="0.5"))), "at rows.0.share, input should be a valid number"),
    "one end": (json.dumps(record(row(mean_95=[0.1]))), "at rows.0.mean_95.1, field required"),
    "long name": (json.dumps(record(row(method="x" * 300))), "at rows.0.method, string should have at most 200"),
    "families": (json.dumps(record(row(families=[]))), "at rows.0.families, input should be an object"),
    "a family": (json.dumps(record(row(families={"exist": [2, 1]}))), "at rows.0.families.exist.0, input should be"),
    "many": (json.dumps(record(row(families={str(i): [1, 1] for i in range(50)}))), "should have at most 40 items"),
    "long key": (json.dumps(record(row(families={"x" * 10**5: [1, 1]}))), "string should have at most 200"),
    "large": (" " * (results.LARGEST + 1), "has more than 4 MiB"),
}


@pytest.mark.parametrize("text, sentence", HOSTILE.values(), ids=HOSTILE)
def test_a_foreign_file_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        results.read(path)
    assert sentence in str(error.value) and str(error.value).startswith("foreign.json") and len(str(error.value)) < 300


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "image.json").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="invalid json"):
        results.read(tmp_path / "image.json")


# ---- figures and tables


@pytest.fixture(scope="module")
def rows(llava, picture):
    steps = sweep.sweep(llava, [(picture, "What?")], plan(["LongTail", "TopK"], "budget", [2, 9, 18]), 8)
    return summary([step.row for step in steps if step.row])


def named(layout):
    """What is written into a figure."""
    return {re.sub("<.*?>", "", note["text"]) for note in layout["annotations"]}


def traces(figure):
    drawn = json.loads(figure.to_json())
    return {trace["name"]: trace for trace in drawn["data"]}, drawn["layout"]


@pytest.mark.parametrize("cost", ["layer_mean", "first_of_full"])
def test_every_setting_is_a_point_that_names_itself(rows, cost):
    drawn, layout = traces(fronts.swept(rows, cost))
    for method in ("Full", "LongTail", "TopK"):
        mine = [row for row in rows if row["method"] == method]
        assert drawn[method]["customdata"] == [row["spec"] for row in mine]
        factor = 100 if cost == "first_of_full" else 1
        assert drawn[method]["x"] == pytest.approx([factor * row[cost] for row in mine])
        assert drawn[method]["y"] == pytest.approx([100 * row["agreement"] for row in mine])
    assert {"Full", "LongTail", "TopK"} <= named(layout)
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_what_a_model_says_is_no_markup_in_a_hover(rows):
    figure = fronts.swept([rows[0] | {"answer": "<a href='javascript:1'>%{x}</a>"}])
    assert "<a" not in figure.data[0].hovertext[0] and "hovertemplate" not in json.loads(figure.to_json())["data"][0]


def test_the_figure_of_results_tells_errors_in_octaves():
    fine = results.read(RESULTS)["rows"]
    drawn, layout = traces(fronts.measured(fine))
    ticks = dict(zip(layout["yaxis"]["ticktext"], layout["yaxis"]["tickvals"], strict=True))
    assert ticks["95"] - ticks["90"] == pytest.approx(ticks["80"] - ticks["60"]), "half the errors, the same step"
    assert len(drawn) == len({row["method"] for row in fine}) + 1 and drawn["the front"]["line"]["dash"] == "dot"
    names = named(layout)
    assert {"LongTail", "Full"} <= names and "Sequential" not in names and "Oracle" not in names
    chosen = named(traces(fronts.measured(fine, "of_full", "read", ("DivPrune",)))[1])
    assert "DivPrune" in chosen and "LongTail" not in chosen


@pytest.mark.parametrize("cost", ["tokens", "of_full"])
@pytest.mark.parametrize("value", [0, 1e6])
def test_any_number_a_file_may_hold_is_drawn(cost, value):
    assert fronts.measured([row(**{cost: value}), row(method="<b>", mean=1, mean_95=[1, 1])], cost).to_json()


def test_a_table_keeps_numbers_beside_words():
    filled = json.loads(table.filled(["a", "b"], [["x", ("10 %", 0.1)], [None, (None, None)]], ["k", ""]))
    assert filled == {
        "columns": ["a", "b"],
        "keys": ["k", ""],
        "rows": [[["x", None], ["10 %", 0.1]], [[None, None]] * 2],
    }


# ---- the browser


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two examples, drawn here."""
    folder = tmp_path_factory.mktemp("scenes")
    listed = []
    for colour in ("red", "blue"):
        Image.new("RGB", (96, 96), colour).save(folder / f"{colour}.png")
        listed.append({"image": f"{colour}.png", "question": f"Is it {colour}?", "answer": "Yes", "note": "plain"})
    (folder / "examples.json").write_text(json.dumps(listed))
    return folder


@contextmanager
def served(llava, folder, limit=60.0):
    """Both tabs below an image and a question, and a field that says what was opened."""
    listed = read_examples(folder)
    gr.set_static_paths([folder.resolve(), chart.PLOTLY])
    with gr.Blocks(analytics_enabled=False) as page:
        words.dictionary(())
        image = gr.Image(listed[0].image, type="filepath", image_mode=None, height=120, label="Image", elem_id="image")
        question = gr.Textbox(listed[0].question, label="Question")
        with gr.Tab("Sweep"):
            tab = sweep_tab.tab(Host(llava), limit, image, question, listed)
        with gr.Tab("Results"):
            results_tab.tab(RESULTS)
        seen = gr.Textbox(label="Opened")
        tab.opened.change(json.dumps, tab.opened, seen, queue=False, api_visibility="private")
    assert [fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"] == []
    page.queue(max_size=24, default_concurrency_limit=8, status_update_rate=1)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **look.launching())
    try:
        yield url
    finally:
        page.close()


@pytest.fixture(scope="module")
def url(llava, scenes):
    with served(llava, scenes) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "the page's tests need Chromium: apt-get install -y --no-install-recommends chromium"
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def visit(browser, url):
    """Open a tab of the page; in the end, no script has failed and no request has left the machine."""
    opened, complaints = [], []

    def visit_(name="Sweep", width=1440, address=url):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
        tab.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
        fine = (address, "data:", "blob:")
        tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(fine) else None)
        tab.goto(address)
        tab.get_by_role("tab", name=name).click()
        opened.append(tab)
        return tab

    yield visit_
    for tab in opened:
        tab.close()
    assert not complaints
    idle()


def idle():
    """Wait until no worker is left; fail if one stays."""
    deadline = time.monotonic() + 10
    while any(thread.name == "comparison" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def press(tab, name):
    tab.get_by_role("button", name=name, exact=True).click()


def says(tab, text):
    expect(tab.locator(".sweep-message p")).to_contain_text(text)


def says_of(spec):
    """What the field of the opened run holds."""
    return re.compile(re.escape(f'"{spec}"'))


def swept(tab, text="2, 9"):
    tab.get_by_label("Values").fill(text)
    expect(tab.locator(".sweep-plan p")).to_contain_text("runs")
    press(tab, "Sweep")
    says(tab, "Done")


def slowly(monkeypatch, each):
    engine = sweep.answer
    monkeypatch.setattr(sweep, "answer", lambda *a, **o: time.sleep(each) or engine(*a, **o))


def test_a_sweep_is_drawn_and_its_points_open_their_runs(visit):
    tab = visit()
    swept(tab)
    says(tab, "Done: 5 runs in")
    expect(tab.locator(".sweep-table tbody tr")).to_have_count(5)
    expect(tab.locator(".sweep-conditions p")).to_contain_text("n = 1")
    points = tab.locator(".by-tokens .scatterlayer .points path")
    expect(points).to_have_count(5)
    expect(tab.locator(".by-tokens .annotation-text", has_text="LongTail")).to_be_visible()
    tab.locator(".sweep-table tr[data-key='TopK:budget=9']").click()
    expect(tab.get_by_label("Opened")).to_have_value(says_of("TopK:budget=9"))
    box = points.nth(3).bounding_box()  # LongTail lies on top, so its points come last
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(tab.get_by_label("Opened")).to_have_value(says_of("LongTail:budget=2"))
    opened = json.loads(tab.get_by_label("Opened").input_value())
    assert opened["question"] == "Is it red?" and opened["image"]
    assert set(opened) == {"method", "image", "question", "at"}
    tokens, times = tab.locator(".by-tokens .main-svg").first, tab.locator(".by-time .main-svg").first
    expect(tokens).to_be_visible()
    expect(times).to_be_hidden()
    tab.locator(".sweep-head").get_by_label("time").check()
    expect(times).to_be_visible()
    expect(tokens).to_be_hidden()


def test_stop_in_mid_run_keeps_what_came(visit, monkeypatch):
    tab = visit()
    with monkeypatch.context() as patch:
        slowly(patch, 0.4)
        tab.get_by_label("Values").fill("1:18:1")
        press(tab, "Sweep")
        expect(tab.locator(".sweep-message p")).to_contain_text("of 37 runs, about")
        expect(tab.locator(".sweep-table tbody tr").first).to_be_visible()
        press(tab, "Stop")
        says(tab, "Stopped. What came until then stays.")
        idle()
    assert 1 <= tab.locator(".sweep-table tbody tr").count() < 37
    swept(tab)
    expect(tab.locator(".sweep-table tbody tr")).to_have_count(5)


def test_bad_values_are_refused_below_the_field_and_on_sweep(visit):
    tab = visit()
    plan_, trouble = tab.locator(".sweep-plan p"), tab.locator(".sweep-trouble p")
    for text, sentence in (
        ("a few", "Values are numbers, comma between, or low:high:step, got 'a few'."),
        ("1:1000:1", "1:1000:1 is more than 200 values"),
        ("0", "A budget must be a whole number of visual tokens, at least 1, got 0."),
        ("1:190:1", "A sweep has at most 200 runs"),
    ):
        tab.get_by_label("Values").fill(text)
        expect(plan_).to_contain_text(sentence)
        press(tab, "Sweep")
        expect(trouble).to_contain_text(sentence)
    swept(tab)
    expect(trouble).to_be_empty()


def test_parameters_follow_the_methods_and_values_the_parameter(visit):
    tab = visit()
    expect(tab.locator(".sweep-plan p")).to_have_text(
        "11 runs: the unpruned model; 5 values of budget each for LongTail, TopK."
    )
    tab.get_by_label("Swept").click()
    tab.get_by_role("option", name="alpha", exact=True).click()
    expect(tab.get_by_label("Values")).to_have_value("0.05:0.5:0.05")
    expect(tab.locator(".sweep-plan p")).to_contain_text("10 values of alpha each for LongTail; TopK once")
    tab.get_by_label("the 2 example scenes").check()
    expect(tab.locator(".sweep-plan p")).to_contain_text("24 runs on 2 questions")
    swept(tab, "0.2, 0.8")
    expect(tab.locator(".sweep-table tbody tr").first).to_contain_text("2")
    expect(tab.locator(".sweep-table tbody tr")).to_have_count(4)
    expect(tab.locator(".sweep-conditions p")).to_contain_text("2 questions")


def test_a_sweep_has_a_limit_of_time(llava, scenes, visit, monkeypatch):
    slowly(monkeypatch, 0.5)
    with served(llava, scenes, limit=0.4) as address:
        tab = visit(address=address)
        press(tab, "Sweep")
        says(tab, "Ended after")
        says(tab, "of 11 runs")
        idle()


def test_results_sort_and_follow_family_and_methods(visit):
    tab = visit("Results")
    lines = tab.locator(".results-table tbody tr")
    expect(lines).to_have_count(len(results.read(RESULTS)["rows"]))
    expect(tab.locator(".results-chart .main-svg").first).to_be_visible()
    heading = tab.locator(".results-table").get_by_role("button", name="mean", exact=True)
    column = ".results-table tbody tr td:nth-child(5)"

    def means():
        return [float(text.split()[0]) for text in tab.locator(column).all_inner_texts()]

    heading.click()
    expect(tab.locator(".results-table th[aria-sort=ascending]")).to_have_count(1)
    assert means() == sorted(means())
    heading.press("Enter")
    expect(tab.locator(".results-table th[aria-sort=descending]")).to_have_count(1)
    assert means() == sorted(means(), reverse=True)
    names = tab.locator(".results-chart .annotation-text")
    expect(names.filter(has_text="LongTail")).to_be_visible()
    tab.get_by_label("Methods that stand out").click()
    tab.get_by_role("option", name="DivPrune", exact=True).click()
    expect(names.filter(has_text="DivPrune")).to_be_visible()
    expect(names.filter(has_text="LongTail")).to_have_count(0)
    tab.keyboard.press("Escape")
    tab.get_by_label("Questions").click()
    tab.get_by_role("option", name="count", exact=True).click()
    tab.locator(".results-head").get_by_label("time").check()
    expect(tab.locator(".results-chart .xtitle")).to_contain_text("time to the first token")


def test_a_results_file_of_ones_own(visit, tmp_path):
    tab = visit("Results")
    foreign, own = tmp_path / "foreign.json", tmp_path / "own.json"
    foreign.write_text(json.dumps(record(row(mean=float("nan")))))
    own.write_text(json.dumps(record(row(), row(method="<img src=x onerror='throw 1'>", tokens=4.0))))
    field = tab.locator("input[type=file][accept='.json']")
    field.set_input_files(foreign)
    expect(tab.locator(".results-trouble p")).to_contain_text("foreign.json is no file of results: at rows.0.mean")
    expect(tab.locator(".results-shown p")).to_contain_text("results.json: ")
    field.set_input_files(own)
    expect(tab.locator(".results-shown p")).to_have_text("own.json: 2 settings of 2 methods")
    expect(tab.locator(".results-trouble p")).to_be_empty()
    expect(tab.locator(".results-table tbody")).to_contain_text("<img src=x onerror='throw 1'>")
    expect(tab.locator(".results-conditions p")).to_have_text("made up")
    refused = tmp_path / "refused.json"
    refused.write_text(json.dumps(record({"method": "TRIM", "budget": None, "reason": "no text tower"})))
    field.set_input_files(refused)
    expect(tab.locator(".results-conditions p")).to_have_text("made up TRIM could not run: no text tower.")
    expect(tab.locator(".results-chart .points path")).to_have_count(0)
    expect(tab.locator(".results-table table")).to_have_count(0)
    field.set_input_files(RESULTS)
    expect(tab.locator(".results-shown p")).to_contain_text("151 settings of 31 methods")
    expect(tab.locator(".results-chart .points path").first).to_be_visible()


def test_a_phone_shows_it_all(visit):
    tab = visit("Sweep", 390)
    swept(tab)
    fits(tab, ".sweep-chart .main-svg")
    tab.get_by_role("tab", name="Results").click()
    fits(tab, ".results-chart .main-svg")


def fits(tab, chart):
    expect(tab.locator(chart).first).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    wide = tab.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391
        && !e.closest('.sweep-sheet, svg') && e.checkVisibility()).map(e => e.className + ' ' + e.tagName)"""
    )
    assert not wide
