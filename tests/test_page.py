"""The page: its parts as functions, then the whole of it in a real browser.

`python tests/test_page.py 3` takes the README's pictures, of example 3.
"""

import asyncio
import io
import json
import re
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
import longtail
from demo import controls, draw, examples, figures, look, numbers, page, run
from longtail import REDUCERS, LongTail, Reducer, param
from longtail.similarity import long_tail

expect.set_options(timeout=20_000)  # a loaded machine is no failure
README = Path(__file__).parents[1] / "assets" / "readme"


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
    menus = [block for block in built.blocks.values() if isinstance(block, gr.Dropdown) and "Method" in block.label]
    assert len(menus) == page.COLUMNS
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


@pytest.fixture
def reduced():
    """Patches 0 and 1 of a 2 x 2 grid survive, 2 is merged into 1, 3 is dropped."""
    role = np.array(["kept", "kept", "merged", "dropped"])
    return longtail.Reduced(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([0, 1, 1, -1]), role)


def test_states_follow_the_source(reduced):
    assert draw.patch_states(reduced).tolist() == ["kept", "kept", "merged", "dropped"]
    assert draw.patch_states(reduced, [1]).tolist() == ["kept", "evicted", "evicted", "dropped"]
    assert draw.patch_states(reduced, [1], [0]).tolist() == ["merged", "evicted", "evicted", "dropped"]
    assert draw.given_up((3, 0, 6, 5, 7), (), (5, 7)) == ([0, 1], [])
    assert draw.given_up((9,), ((5, 6), (6, 9), (7, 8)), (5, 9)) == ([0, 1], [2]), "lost with what spoke for them"


def test_masked_picture(reduced):
    crop = Image.new("RGB", (32, 32), (200, 30, 90))
    picture = np.asarray(draw.masked(crop, (2, 2), draw.patch_states(reduced, [1])))
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
    role = np.array(["kept", "recovered", "merged", "dropped"])
    keep, source = torch.tensor([0, 1, -1]), torch.tensor([0, 1, 2, -1])
    reduced = longtail.Reduced(torch.zeros(3, 1), keep, source, role)
    states = draw.patch_states(reduced)
    assert states.tolist() == role.tolist()
    assert draw.patch_states(reduced, [2]).tolist() == ["kept", "recovered", "evicted", "dropped"]
    crop = Image.new("RGB", (32, 32), (200, 30, 90))
    picture = np.asarray(draw.masked(crop, (2, 2), states))
    side = len(picture) // 2
    kept, recovered, merged = (picture[y, x].tolist() for y, x in ((9, 9), (9, side + 9), (side + 9, 9)))
    assert kept == recovered == [200, 30, 90]
    assert kept[1] < merged[1] < merged[0] - 50, "a merged patch is faded and keeps its colour"
    assert tuple(picture[side, side // 2]) == draw.EDGE, "a line parts what is kept from what was merged"
    assert tuple(picture[side // 2, side]) == tuple(picture[side, side + side // 2]) == draw.RECOVERED
    assert tuple(picture[side + side // 2, side]) not in (draw.EDGE, draw.RECOVERED), "what is not kept has no outline"
    legend = numbers.legend(states)
    assert all(f"{state} 1<" in legend for state in ("kept", "recovered", "merged", "dropped"))


def test_nothing_dropped_is_the_crop_itself():
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    states = np.full(36, "kept")
    assert np.array_equal(draw.masked(crop, (6, 6), states), draw.enlarged(crop, (6, 6)))


# ---- figures and numbers


def test_similarity_figure():
    curve = long_tail(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.05, 0.04]), 0.5, "tail")
    figure = json.loads(figures.similarity_curve(curve).to_json())
    objective, head, tail = figure["data"]
    assert head["y"] + tail["y"][1:] == sorted(curve.similarity.tolist(), reverse=True)
    assert head["customdata"][0] == 1 and head["x"][-1] == tail["x"][0] == curve.knee
    assert int(np.argmax(objective["y"])) + 1 == curve.knee
    words = [note["text"] for note in figure["layout"]["annotations"]]
    assert words == [f"knee i* = {curve.knee}", f"kept {curve.kept} of 6"]
    assert [shape["x0"] for shape in figure["layout"]["shapes"] if shape["type"] == "line"] == [curve.knee, curve.kept]
    assert figure["layout"]["yaxis"]["rangemode"] == figure["layout"]["yaxis2"]["rangemode"] == "tozero"


def test_numbers_add_up(llava, picture):
    answer = longtail.answer(llava, picture, "What?", LongTail(alpha=0.5), max_new_tokens=6)
    assert sum(numbers.phases(answer).values()) == pytest.approx(answer.seconds.total)
    table = numbers.table(answer, 2 * answer.seconds.total)
    assert f"<b>{answer.tokens.visual}</b> of 36 visual tokens" in table
    widths = [float(part.split("%")[0]) for part in table.split('"latency"')[1].split("width:")[1:]]
    assert len(widths) == len(numbers.PHASES) and sum(widths) == pytest.approx(50, abs=0.1), "the bar starts at zero"
    assert numbers.heading(answer) == "LongTail · alpha 0.5 · cut off at the limit of new tokens"
    assert "n = 1" in numbers.conditions([answer], 6, 0.0, 0)


def test_rows_are_the_same_before_and_after(llava, picture):
    answer = longtail.answer(llava, picture, "What?", max_new_tokens=2)
    names = [table.split("<th")[1:] for table in (numbers.table(None), numbers.table(answer))]
    assert [row.split("<")[0] for row in names[0]] == [row.split("<")[0] for row in names[1]]


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
    return run.Asked(picture, question, dict(enumerate(reducers)), **given)


def final(updates) -> dict:
    """What stands on the page in the end."""
    shown = {}
    for parts in updates:
        shown |= parts
    return shown


def test_compare_fills_every_column(llava, picture):
    shown = final(run.compare(threading.Event(), llava, asked(picture, [longtail.Full(), LongTail()])))
    for column, method in enumerate(("Full", "LongTail")):
        alone = longtail.answer(llava, picture, "What is it?", longtail.make(method), max_new_tokens=5)
        assert shown[column, "answer"] == alone.text
        assert shown[column, "by"].startswith(method)
        assert f"<b>{alone.tokens.visual}</b> of 36" in shown[column, "numbers"]
    assert shown[0, "curve"] is None and "no similarity curve" in shown[0, "no_curve"]
    assert shown[1, "curve"].data
    assert "n = 1" in shown[run.CONDITIONS] and shown[run.MESSAGE].startswith("Done")


@pytest.mark.parametrize("name", REDUCERS)
def test_every_method_has_its_column(llava, picture, name):
    """It is drawn, patch by patch, or says what it lacks."""
    shown = final(run.compare(threading.Event(), llava, asked(picture, [longtail.make(name)])))
    if shown[0, "refusal"]:
        assert "no CLIP text tower" in shown[0, "refusal"] and shown[0, "by"] == f"{name} · could not run"
        return
    assert shown[0, "by"].startswith(name) and shown[0, "picture"].size == (672, 672)
    assert sum(int(count) for count in re.findall(r" (\d+)</span>", shown[0, "legend"])) == 36
    assert shown[0, "curve"] or shown[0, "no_curve"].startswith(name)
    assert "of 36 visual tokens" in shown[0, "numbers"]


def test_what_the_language_model_drops_is_crossed(monkeypatch, llava, picture):
    @dataclass(frozen=True)
    class Early(Reducer):
        """Drops the first 30 visual tokens before layer 1."""

        def drop(self, prefill):
            gone = prefill.visual & (prefill.visual.cumsum(0) <= 30)
            return (~gone).nonzero().flatten() if prefill.layer == 1 else None

    shown = final(run.compare(threading.Event(), llava, asked(picture, [Early()])))
    assert "kept 6<" in shown[0, "legend"] and "given up later 30<" in shown[0, "legend"]
    assert "30, 30 visual" in shown[0, "numbers"] and "<b>36</b> of 36" in shown[0, "numbers"]
    assert "16 visual" in shown[0, "numbers"], "36 enter the first layer, 6 the two others"
    assert shown[0, "picture"].getpixel((56, 56)) == draw.MARK and shown[0, "picture"].getpixel((616, 616)) != draw.MARK


@dataclass(frozen=True)
class Choosy(Reducer):
    """Wants what the model lacks."""

    def reduce(self, visual):
        raise ValueError("this model has no CLIP text tower")


def test_a_method_that_cannot_run_says_so_and_the_others_answer(llava, picture):
    shown = final(run.compare(threading.Event(), llava, asked(picture, [longtail.Full(), Choosy(), LongTail()])))
    assert shown[1, "refusal"] == "This model has no CLIP text tower."
    assert shown[1, "by"] == "Choosy · could not run" and shown[1, "answer"] == ""
    assert shown[0, "refusal"] == shown[2, "refusal"] == "" and shown[0, "answer"] and shown[2, "answer"]
    assert shown[run.MESSAGE] == "Done, but 1 of 3 could not run: the column says why." and not shown[run.TROUBLE]
    assert "n = 1" in shown[run.CONDITIONS]
    alone = final(run.compare(threading.Event(), llava, asked(picture, [Choosy()])))
    assert alone[0, "refusal"] and alone[run.CONDITIONS] == run.SIDE_BY_SIDE


def test_a_question_no_method_could_answer_is_refused_once(llava, picture):
    updates = run.compare(threading.Event(), llava, asked(picture, [longtail.Full(), Choosy()], question=" "))
    with pytest.raises(ValueError, match="the question is empty"):
        next(updates)


def test_time_limit_is_said(llava, picture):
    shown = final(run.compare(threading.Event(), llava, asked(picture, [longtail.Full()], time_limit=0)))
    assert "cut off at the time limit" in shown[0, "by"]


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
    assert "ran out of memory" in sentence(torch.OutOfMemoryError("17 GiB"))
    assert not caplog.records
    assert "RuntimeError" in sentence(RuntimeError("/secret/path")) and "secret" not in sentence(RuntimeError("secret"))
    assert "secret" in caplog.text, "the log has the cause"
    assert asyncio.run(_taken(run.streamed(lambda stop: ({i: i} for i in (1, 2))))) == [{1: 1}, {2: 2}]
    assert not working()


def working() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "comparison"]


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


# ---- the browser


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two examples, drawn here."""
    folder = tmp_path_factory.mktemp("scenes")
    listed = []
    for i, colour in enumerate(("red", "blue")):
        scene = Image.new("RGB", (96, 96), "grey")
        scene.paste(colour, (16 + 32 * i, 24, 48 + 32 * i, 56))
        scene.save(folder / f"{colour}.png")
        listed.append({"image": f"{colour}.png", "question": f"Is it {colour}?", "answer": "Yes", "note": "a square"})
    (folder / "examples.json").write_text(json.dumps(listed))
    return folder


@contextmanager
def served(llava, folder):
    """The page's address, served as app.py serves it."""
    built = page.build(llava, examples=folder)
    built.queue(max_size=24, default_concurrency_limit=8, status_update_rate=1)
    _, url, _ = built.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, **look.launching())
    try:
        yield url
    finally:
        built.close()


@contextmanager
def chromium():
    """A browser, the system's own."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "the page's tests need Chromium: apt-get install -y --no-install-recommends chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(llava, scenes):
    with served(llava, scenes) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as it:
        yield it


@pytest.fixture
def visit(browser, url, monkeypatch):
    """Open the page; in the end, no script has failed and no request has left the machine. Answers are short here."""
    opened, complaints, engine = [], [], run.generate
    monkeypatch.setattr(run, "generate", lambda *a, **o: engine(*a, **o | {"max_new_tokens": 20}))

    def visit_(width=1440):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
        tab.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
        tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        tab.goto(url)
        expect(tab.locator("#column-2")).to_be_visible()
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
    while working() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not working()


def press(tab, name):
    tab.get_by_role("button", name=name, exact=True).click()


def says(tab, text):
    expect(tab.locator("#message")).to_contain_text(text)


def refuses(tab, sentence):
    expect(tab.locator("#trouble")).to_contain_text(sentence)


def slowly(monkeypatch, first=0.0, each=0.0):
    """Have the engine take its time."""
    engine = run.generate

    def generate(*arguments, **options):
        time.sleep(first)
        for answer in engine(*arguments, **options):
            yield answer
            time.sleep(each)

    monkeypatch.setattr(run, "generate", generate)


def test_an_example_is_answered_side_by_side(visit):
    tab = visit()
    expect(tab.get_by_label("Question")).to_have_value("Is it red?")
    tab.locator("[data-example='1']").press("Enter")
    expect(tab.get_by_label("Question")).to_have_value("Is it blue?")
    press(tab, "Run")
    says(tab, "Done")
    for column, method in ((1, "Full"), (2, "LongTail")):
        lane = tab.locator(f"#column-{column}")
        expect(lane.locator(".answer p")).not_to_have_text("")
        expect(lane.locator(".by p")).to_contain_text(method)
        expect(lane.locator("p.kept")).to_contain_text("of 36 visual tokens")
        expect(lane.locator(".rows td").first).to_contain_text("tokens")
        expect(lane.locator(".legend div").last).to_contain_text("kept")
    expect(tab.locator("#column-1")).to_contain_text("Full sorts no similarity curve")
    expect(tab.locator("#column-2 .curve")).to_contain_text("knee i*")
    expect(tab.locator("#conditions")).to_contain_text("n = 1")
    colours = tab.locator("#column-2 .latency i").evaluate_all(
        "all => all.map(i => getComputedStyle(i).backgroundColor)"
    )
    assert len({*colours, "rgba(0, 0, 0, 0)"}) == len(numbers.PHASES) + 1, "each phase has a colour of its own"
    tops = tab.locator(".lane .numbers .rows").evaluate_all("tables => tables.map(t => t.getBoundingClientRect().top)")
    assert len(tops) == 2 and tops[0] == tops[1], "the numbers stand on one row"


def test_what_the_model_says_stays_text(visit, monkeypatch):
    engine = run.generate

    def generate(*arguments, **options):
        for answer in engine(*arguments, **options):
            object.__setattr__(answer, "text", "<img src=x onerror='throw 1'>{{value}}${1}")
            yield answer

    monkeypatch.setattr(run, "generate", generate)
    tab = visit()
    press(tab, "Run")
    says(tab, "Done")
    expect(tab.locator("#column-2 .answer p")).to_contain_text("<img src=x onerror='throw 1'>")


def test_stop_before_the_first_token_and_later(visit, monkeypatch):
    tab = visit()
    with monkeypatch.context() as patch:
        slowly(patch, first=0.5, each=0.05)
        press(tab, "Run")
        says(tab, "Full is answering")
        press(tab, "Stop")
        says(tab, "Stopped")
        idle()
        press(tab, "Run")
        expect(tab.locator("#column-1 .answer p")).not_to_have_text("")
        press(tab, "Stop")
        says(tab, "Stopped")
        idle()
    press(tab, "Run")
    says(tab, "Done")


def test_a_double_click_is_one_run(visit, monkeypatch):
    calls, engine = [], run.generate
    monkeypatch.setattr(run, "generate", lambda *a, **o: calls.append(1) or engine(*a, **o))
    tab = visit()
    tab.get_by_role("button", name="Run", exact=True).dblclick()
    says(tab, "Done")
    assert len(calls) == 2


def test_a_closed_tab_ends_its_run(visit, monkeypatch):
    slowly(monkeypatch, each=0.05)
    tab = visit()
    press(tab, "Run")
    says(tab, "Full is answering")
    tab.close()
    idle()


def test_a_failing_engine_is_said_and_the_next_run_works(visit, monkeypatch):
    tab = visit()
    with monkeypatch.context() as patch:
        patch.setattr(run, "generate", lambda *a, **o: (_ for _ in ()).throw(RuntimeError("boom")))
        press(tab, "Run")
        refuses(tab, "The model failed with RuntimeError")
    press(tab, "Run")
    says(tab, "Done")


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "words.png").write_text("not a picture")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:900])
    Image.new("1", (20_000, 20_000)).save(folder / "vast.png")
    return folder


def test_bad_input_is_refused_in_a_sentence(visit, odd_files):
    tab = visit()
    for name, sentence in (
        ("words.png", "words.png is not a readable PNG, JPEG, WEBP, GIF or BMP file"),
        ("cut.jpg", "is damaged or cut short"),
    ):
        press(tab, "Clear")
        says(tab, "Drop an image in")
        tab.locator("#ask-image input[type=file]").set_input_files(odd_files / name)
        refuses(tab, sentence)
        press(tab, "Run")
        refuses(tab, "There is no image yet")
    tab.locator("[data-example='0']").click()
    expect(tab.get_by_label("Question")).to_have_value("Is it red?")
    for question, sentence in (("", "The question is empty"), ("why " * 2500, "The question has 10,000 characters")):
        tab.get_by_label("Question").fill(question)
        press(tab, "Run")
        refuses(tab, sentence)
    tab.get_by_label("Question").fill("What is it?")
    press(tab, "Run")
    says(tab, "Done")
    expect(tab.locator("#trouble p")).to_be_empty()


def test_a_vast_image_is_refused_by_its_header(visit, odd_files):
    tab = visit()  # whose own browser will labour at it: the next visitor's must not
    tab.locator("#ask-image input[type=file]").set_input_files(odd_files / "vast.png")
    refuses(tab, "vast.png is too large: at most 40 megapixels")
    tab = visit()
    press(tab, "Run")
    says(tab, "Done")


def test_columns_come_and_go_and_keep_their_settings(visit):
    tab = visit()
    tab.locator("#column-2 .parameters > button").click()
    alpha = tab.locator("#column-2").get_by_label("number input for alpha")
    alpha.fill("0.5")
    alpha.press("Tab")
    press(tab, "Add a method")
    expect(tab.locator("#column-3")).to_be_visible()
    press(tab, "Add a method")
    expect(tab.locator("#column-4")).to_be_visible()
    expect(tab.get_by_role("button", name="Add a method")).to_be_hidden()
    expect(alpha).to_have_value("0.5")
    tab.locator("#column-1 .remove").click()
    expect(tab.locator("#column-1")).to_be_hidden()
    press(tab, "Run")
    says(tab, "Done")
    expect(tab.locator("#column-2 .by p")).to_contain_text("LongTail · alpha 0.5")
    for column in (3, 4):
        expect(tab.locator(f"#column-{column} .answer p")).not_to_have_text("")
    tab.locator("#column-4 .remove").click()
    expect(tab.locator("#column-4")).to_be_hidden()
    expect(tab.locator("#column-2 .remove")).to_be_hidden()


def test_parameters_follow_the_method(visit):
    tab = visit()
    lane = tab.locator("#column-2")
    lane.locator(".parameters > button").click()
    slider = lane.get_by_label("range slider for alpha")
    expect(slider).to_have_attribute("max", "1")
    lane.get_by_label("head", exact=True).check()
    expect(slider).to_have_attribute("max", f"{LongTail.limits('alpha', reading='head')[1]:g}")
    lane.get_by_label("number input for alpha").fill("3")
    lane.get_by_label("tail", exact=True).check()
    expect(slider).to_have_attribute("max", "1")
    expect(lane.get_by_label("number input for alpha")).to_have_value("1")
    lane.get_by_label("Method 2").click()
    tab.get_by_role("option", name="Random").click()
    expect(lane.get_by_label("seed")).to_be_visible()  # Random's own: LongTail has a budget too
    expect(lane.locator(".about p").first).to_contain_text("drawn at random")
    lane.get_by_label("number input for budget").fill("9")
    lane.get_by_label("number input for budget").press("Tab")
    press(tab, "Run")
    says(tab, "Done")
    expect(lane.locator("p.kept")).to_contain_text("9 of 36")


def test_the_menu_has_every_method(visit, monkeypatch):
    """Found by typing, picked, described; one that cannot run says why in its own column."""
    tab = visit()
    menu, lane = tab.locator("#column-1").get_by_label("Method 1"), tab.locator("#column-1")
    menu.click()
    options = tab.get_by_role("option")
    expect(options).to_have_count(len(REDUCERS))
    box = tab.get_by_role("listbox").bounding_box()
    assert box["height"] <= 500 and box["y"] + box["height"] <= 900, "the menu scrolls, the page stays"
    menu.press("Control+A")
    menu.press_sequentially("unif")
    expect(options).to_have_count(1)
    options.click()
    expect(lane.locator(".about p").first).to_contain_text("Keeps the patches at the cell centres")
    monkeypatch.setattr(longtail.Uniform, "reduce", Choosy.reduce)
    press(tab, "Run")
    says(tab, "Done, but 1 of 2 could not run")
    expect(lane.locator(".refusal p")).to_have_text("This model has no CLIP text tower.")
    expect(lane.locator(".answer p")).to_be_hidden()
    expect(tab.locator("#column-2 .answer p")).not_to_have_text("")
    expect(tab.locator("#column-2 .refusal p")).to_be_hidden()


def test_a_phone_shows_it_all(visit):
    tab = visit(390)
    press(tab, "Run")
    says(tab, "Done")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    wide = tab.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391
        && !e.closest('.cards') && e.checkVisibility()).map(e => e.className + ' ' + e.tagName)"""
    )
    assert not wide


def test_every_input_has_a_name(visit):
    tab = visit()
    accordions = tab.locator(".parameters > button, #more > button")
    expect(accordions).to_have_count(page.FEWEST + 1)  # all() takes what is there, be it nothing yet
    for accordion in accordions.all():
        accordion.click()
    for name in ("number input for heavy", "number input for temperature"):
        expect(tab.get_by_label(name)).to_be_visible()
    nameless = tab.evaluate(
        """[...document.querySelectorAll('main :is(input, textarea, select, button)')].filter(e => e.checkVisibility()
        && !e.querySelector('img') && !e.labels?.length && !e.ariaLabel && !e.title && !e.innerText.trim())
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert not nameless


def test_three_endpoints_are_public(llava, scenes):
    """What the page itself does is its own: tests/test_api.py has the rest."""
    built = page.build(llava, examples=scenes)
    named = [fn.api_name for fn in built.fns.values() if fn.api_visibility == "public"]
    assert sorted(named) == ["answer", "compare", "methods"]


# ---- the README's pictures


def picture_readme(example: int = 0):
    """Run an example of the bundled model and picture the page: wide, wide and dark, narrow."""
    with served(longtail.load("tiny"), examples.EXAMPLES) as url, chromium() as browser:
        for name, width, scheme in (("1440", 1440, "light"), ("1440-dark", 1440, "dark"), ("390", 390, "light")):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.goto(url)
            expect(tab.locator("#column-2")).to_be_visible()
            if example:
                tab.locator(f"[data-example='{example}']").click()
                expect(tab.locator(f"[data-example='{example}']")).to_have_attribute("aria-pressed", "true")
                tab.wait_for_timeout(1000)
            press(tab, "Run")
            says(tab, "Done")
            for part in tab.locator(".lane > *").all():  # pictures are loaded when they are seen
                if part.is_visible():
                    part.scroll_into_view_if_needed()
            tab.evaluate("scrollTo(0, 0)")
            tab.wait_for_timeout(1000)
            tab.screenshot(path=README / f"page-{name}.png", full_page=True)


if __name__ == "__main__":
    picture_readme(*map(int, sys.argv[1:]))
