"""The endpoints, called as other programs call them: by gradio_client, by plain HTTP, as an MCP client reads them."""

import asyncio
import inspect
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio.utils import get_function_description
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
import longtail
from demo import api, host, page, run, server, words
from longtail import REDUCERS

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "assets" / "examples"
PICTURE = PICTURES / "place.png"
FILE = {"_type": "gradio.FileData"}
MEASURED = ("seconds", "memory", "spread", "versus")


@pytest.fixture(scope="module")
def built(llava):
    return page.build(llava, time_limit=30)


@pytest.fixture(scope="module")
def url(built):
    running = server.serve(built, quiet=True)
    yield running.url
    running.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def ask(client):
    """Call an endpoint; a job that was refused is never iterated over: that would wait for ever."""

    def ask_(endpoint, *arguments, **named):
        return client.submit(*arguments, api_name=endpoint, **named).result(timeout=60)

    return ask_


def steady(record: dict) -> dict:
    return json.loads(json.dumps({name: value for name, value in record.items() if name not in MEASURED}))


# ---- what they answer


def test_methods_are_the_registrys(ask):
    assert ask("/methods") == json.loads(json.dumps([reducer.describe() for reducer in REDUCERS.values()]))


@pytest.mark.parametrize(
    "given, reducer",
    [
        ({}, longtail.LongTail()),
        ({"method": "LongTail:alpha=0.5", "params": {"heavy": 0.3}}, longtail.LongTail(alpha=0.5, heavy=0.3)),
        ({"method": "Random", "params": {"budget": 7, "seed": 3}}, longtail.Random(budget=7, seed=3)),
    ],
)
def test_answer_is_the_librarys(ask, llava, given, reducer):
    options = {"max_new_tokens": 12, "temperature": 0.7, "seed": 5}
    theirs = ask("/answer", handle_file(PICTURE), "What is it?", **given, **options)
    ours = longtail.answer(llava, PICTURE, "What is it?", reducer, **options).record()
    assert steady(theirs) == steady(ours)
    assert theirs["seconds"].keys() == ours["seconds"].keys() and theirs["seconds"]["total"] > 0


def test_compare_is_the_librarys(ask, llava):
    methods = ["Full", "LongTail:alpha=0.5", "Random"]
    theirs = ask("/compare", handle_file(PICTURE), "What is it?", methods, budget=9, repeat=2, max_new_tokens=6, seed=1)
    reducers = [longtail.Full(), longtail.LongTail(alpha=0.5, budget=9), longtail.Random(budget=9)]
    ours = [
        longtail.answer(llava, PICTURE, "What is it?", reducer, max_new_tokens=6, seed=1).record()
        for reducer in reducers
    ]
    assert [steady(record) for record in theirs["answers"]] == [steady(record | {"repeat": 2}) for record in ours]
    assert [record["tokens"]["visual"] for record in theirs["answers"]] == [36, 9, 9]
    assert theirs["grid"] == [6, 6] and "after one warm-up run, seconds are the median of 2" in theirs["conditions"]


def test_compare_without_more_than_it_needs(ask):
    record = ask("/compare", handle_file(PICTURE), "What is it?", max_new_tokens=2)
    assert [answer["method"] for answer in record["answers"]] == ["Full", "LongTail", "Random"]


def test_preview_is_the_librarys_without_times(ask, llava):
    methods = ["Full", "LongTail:alpha=0.5", "Random"]
    theirs = ask("/preview", handle_file(PICTURE), "What is it?", methods, budget=9, max_new_tokens=6, seed=1)
    reducers = [longtail.Full(), longtail.LongTail(alpha=0.5, budget=9), longtail.Random(budget=9)]
    for record, reducer in zip(theirs["answers"], reducers, strict=True):
        alone = longtail.answer(llava, PICTURE, "What is it?", reducer, max_new_tokens=6, seed=1)
        assert record["answer"] == alone.text and record["tokens"]["visual"] == alone.tokens.visual
        assert record["shared"] is True and not any(record["seconds"].values())
    assert "faster" in theirs["answers"][1]["versus"] and not any(theirs["answers"][1]["versus"]["faster"].values())
    assert theirs["grid"] == [6, 6] and "press Run or Measure for times" in theirs["conditions"]


def test_a_method_that_cannot_run_is_said_of_a_preview(ask):
    with pytest.raises(AppError, match="no CLIP text tower"):
        ask("/preview", handle_file(PICTURE), "What is it?", ["Full", "TRIM"], max_new_tokens=2)


def test_two_at_once_do_not_mix(url, llava):
    questions = [
        (p, q) for q in ("What is it?", "Is it red, or is it not?") for p in ("place.png", "word-on-texture.png")
    ]
    alone = [longtail.answer(llava, PICTURES / p, q, max_new_tokens=16).record()["answer"] for p, q in questions]
    assert len(set(alone)) == len(alone)

    def one(turns):
        visitor = Client(url, verbose=False)
        jobs = [
            visitor.submit(handle_file(PICTURES / p), q, "Full", max_new_tokens=16, api_name="/answer")
            for p, q in turns
        ]
        return [job.result(timeout=60)["answer"] for job in jobs]

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(one, (questions[:2], questions[2:]))
    assert first + second == alone


# ---- what they refuse


@pytest.mark.parametrize(
    "endpoint, given, sentence",
    [
        ("/answer", {"question": " "}, "The question is empty"),
        ("/answer", {"question": "why " * 2500}, "The question has 10,000 characters"),
        ("/answer", {"question": 3}, "The argument question must be text, got 3"),
        ("/answer", {"method": "Nope<b>"}, "There is no method 'Nope&lt;b&gt;': choose one of Full,"),
        ("/answer", {"method": ["Full"]}, "The argument method must be text"),
        ("/answer", {"method": "LongTail:alpha=nan"}, "LongTail.alpha must be a finite number"),
        ("/answer", {"params": {"beta": 1}}, "LongTail has no parameter 'beta'"),
        ("/answer", {"params": {"alpha": 10**300}}, "LongTail.alpha must be between 0.01 and 1"),
        ("/answer", {"params": {"alpha": 10**400}}, "LongTail.alpha must be"),
        ("/answer", {"params": [1]}, "The parameters of LongTail must be given by name"),
        ("/answer", {"max_new_tokens": 0}, "The argument max_new_tokens must be between 1 and 256, got 0"),
        ("/answer", {"max_new_tokens": 10**400}, "The argument max_new_tokens must be a finite number"),
        ("/answer", {"max_new_tokens": 2.5}, "The argument max_new_tokens must be a whole number"),
        ("/answer", {"temperature": 1e308}, "The argument temperature must be between 0 and 2"),
        ("/answer", {"seed": -1}, "The argument seed must be between 0 and 2,147,483,647"),
        ("/compare", {"methods": []}, "The argument methods must be a list of 1 to 8 methods"),
        ("/compare", {"methods": "Full"}, "The argument methods must be a list of 1 to 8 methods"),
        ("/compare", {"methods": ["Full"] * 9}, "The argument methods must be a list of 1 to 8 methods"),
        ("/compare", {"methods": ["Full", None]}, "The argument method must be text, got None"),
        ("/compare", {"budget": 577}, "The argument budget must be between 0 and 576"),
        ("/preview", {"methods": []}, "The argument methods must be a list of 1 to 8 methods"),
        ("/preview", {"question": " "}, "The question is empty"),
        ("/compare", {"repeat": 21}, "The argument repeat must be between 1 and 20"),
        ("/compare", {"repeat": True}, "The argument repeat must be a finite number"),
    ],
)
def test_what_cannot_be_is_a_sentence(ask, endpoint, given, sentence):
    with pytest.raises(AppError) as refusal:
        ask(endpoint, **{"image": handle_file(PICTURE), "question": "What is it?"} | given)
    assert sentence in str(refusal.value)


@pytest.fixture(scope="module")
def post(url):
    """Call by plain HTTP, arguments as JSON text; returns what the event said."""

    def post_(endpoint, arguments: str) -> dict:
        call = f"{url}gradio_api/call{endpoint}"
        began = httpx.post(call, content=f'{{"data": {arguments}}}', headers={"content-type": "application/json"})
        said = httpx.get(f"{call}/{began.json()['event_id']}", timeout=60).text
        return json.loads(re.findall(r"^data: (.*)$", said, re.M)[-1])

    return post_


@pytest.mark.parametrize(
    "image",
    [
        {"path": "/etc/passwd", "meta": FILE},
        {"path": "/etc/passwd"},
        "/etc/passwd",
        {"path": str(PICTURE), "meta": FILE},
        {"path": str(PICTURE)},
        {"path": "http://127.0.0.1:1/picture.png", "meta": FILE},
        {"path": "http://localhost/picture.png", "meta": FILE},
        {"path": "http://169.254.169.254/latest", "meta": FILE},
        {"path": "http://127.0.0.1:1/picture.png"},
        {"path": 3, "meta": FILE},
        {"path": "picture.png", "meta": FILE, "size": "huge"},
        [],
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "endpoint, more", [("/answer", ["Full", None]), ("/preview", [["Full"], 0]), ("/compare", [["Full"], 0, 1])]
)
def test_only_an_upload_is_opened(post, endpoint, more, image):
    said = post(endpoint, json.dumps([image, "What is it?", *more, 2, 0, 0]))
    assert said["error"] == api.NO_FILE


@pytest.mark.parametrize("number, got", [("NaN", "nan"), ("1e999", "inf"), ("-Infinity", "-inf"), ("null", "None")])
def test_a_number_that_is_none(post, number, got):
    said = post("/answer", f'[null, "What is it?", "Full", null, 2, {number}, 0]')
    assert said["error"] == f"The argument temperature must be a finite number, got {got}."


def test_an_upload_that_is_no_picture(ask, tmp_path):
    (tmp_path / "words.png").write_text("not a picture")
    with pytest.raises(AppError, match=r"words\.png is not a readable PNG, JPEG, WEBP, GIF or BMP file"):
        ask("/answer", handle_file(tmp_path / "words.png"), "What is it?")
    assert ask("/answer", handle_file(PICTURE), "What is it?", max_new_tokens=2)["tokens"]["generated"] == 2


def test_a_failure_is_not_told_in_full(ask, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("/secret/place")

    with monkeypatch.context() as patch:
        patch.setattr(api, "measure", broken)
        with pytest.raises(AppError) as refusal:
            ask("/compare", handle_file(PICTURE), "What is it?")
    assert "failed with RuntimeError" in str(refusal.value) and "secret" not in str(refusal.value)
    assert "/secret/place" in caplog.text, "the log has the cause"
    assert ask("/compare", handle_file(PICTURE), "What is it?", ["Full"], max_new_tokens=2)["answers"]


# ---- the one lane


def test_gradio_lets_everybody_into_our_line(built):
    asks = [fn for fn in built.fns.values() if fn.concurrency_id == "model"]
    assert len([fn for fn in asks if fn.api_name in ("answer", "preview", "compare")]) == 3 and len(asks) > 8
    assert {fn.concurrency_limit for fn in asks} == {None}, "our line decides who has the model"


def test_as_many_new_tokens_as_the_page_allows(built, llava):
    sliders = [block for block in built.blocks.values() if isinstance(block, gr.Slider)]
    named = [s for s in sliders if getattr(s.label, "key", "") == words.choice("new_tokens")]
    assert {s.maximum for s in named} == {host.longest(llava)}


@pytest.fixture
def endless(monkeypatch):
    """Have a comparison go on until its watch ends it; set once it runs."""
    running = threading.Event()

    def measure(*arguments, stop, **options):
        running.set()
        while not stop.is_set():
            time.sleep(0.01)

    monkeypatch.setattr(api, "measure", measure)
    return running


def test_a_cancelled_call_frees_the_model(client, built, endless):
    job = client.submit(handle_file(PICTURE), "What is it?", api_name="/compare")
    assert endless.wait(20) and built.host.line.busy
    job.cancel()
    assert built.host.line.drained(10)


def test_a_caller_who_hangs_up_frees_the_model(url, built, endless):
    call = f"{url}gradio_api/call/compare"
    path = httpx.post(f"{url}gradio_api/upload", files={"files": PICTURE.open("rb")}).json()[0]
    data = [{"path": path, "meta": FILE}, "What is it?", ["Full"], 0, 1, 2, 0, 0]
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{call}/{event}", timeout=20):
        assert endless.wait(20) and built.host.line.busy
    assert built.host.line.drained(10)


def test_a_comparison_has_an_end(llava, picture):
    watch = api.Watch(threading.Event(), 0)
    with pytest.raises(ValueError, match="the comparison took longer than 0 seconds: ask for fewer"):
        api.measure(llava, picture, "What is it?", [longtail.Full()], stop=watch)
    gone = threading.Event()
    gone.set()
    with pytest.raises(run.Left):
        api.measure(llava, picture, "What is it?", [longtail.Full()], stop=api.Watch(gone, 60))


def test_what_ends_the_wait_ends_the_work():
    stopped = threading.Event()

    def work(stop):
        assert stop.stopped.wait(20)
        stopped.set()

    job = run.Job("answer")

    async def leave():
        waiting = api.attended(job, work)
        first = await anext(waiting)
        await waiting.aclose()
        return first

    assert asyncio.run(leave()) == {} and stopped.is_set() and job.line.drained(10)


def test_an_answer_has_the_pages_time_limit(monkeypatch, ask):
    def answer(*arguments, **options):
        raise ValueError(f"time limit {options['time_limit']}")

    monkeypatch.setattr(longtail, "answer", answer)
    with pytest.raises(AppError, match="Time limit 30"):
        ask("/answer", handle_file(PICTURE), "What is it?")


# ---- README and MCP


def test_the_readmes_program_runs(url, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.S) if "gradio_client" in code]
    assert program.count('"http://127.0.0.1:7860/"') == 1
    program = program.replace("http://127.0.0.1:7860/", url).replace("assets/", f"{ROOT}/assets/")
    exec(program, {})
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("Full ", "LongTail ", "Random "))] == [
        "Full", "LongTail", "Random",
    ]  # fmt: skip
    assert "median of 3" in out and str(list(REDUCERS)) in out


def test_every_argument_is_described(built):
    """The docstrings are all that an MCP client knows."""
    public = {fn.api_name: fn.fn for fn in built.fns.values() if fn.api_visibility == "public"}
    assert set(public) == {"methods", "answer", "preview", "compare"}
    for endpoint in public.values():
        description, arguments, _ = get_function_description(endpoint)
        assert len(description) > 40
        assert list(arguments) == list(inspect.signature(endpoint).parameters)
        assert all(len(text) > 20 for text in arguments.values())


def test_mcp_without_its_extra_is_a_sentence_before_the_model(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: pytest.fail("the model was loaded"))
    assert app.main(["--mcp", "on"]) == 2
    out, err = capsys.readouterr()
    assert "pip install 'gradio[mcp]'" in err and len(err.strip().splitlines()) == 1 and not out


@pytest.mark.parametrize("flags, on", [([], False), (["--mcp"], True), (["--mcp", "off"], False)])
def test_mcp_is_launched_when_asked_for(monkeypatch, llava, launched, flags, on):
    monkeypatch.setattr(app, "need_mcp", lambda: None)
    monkeypatch.setattr(app, "build", lambda *arguments, **options: api.Blocks())
    monkeypatch.setattr(app, "warm_up", lambda model: None)
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: llava)
    assert app.main(flags) == 0 and launched[0][1]["mcp_server"] is on
