"""The page in a real browser: served as app.py serves it, opened in the system's Chromium, watched for complaints."""

import json
import os
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo import board, page, server, uploads

os.environ["GRADIO_TEMP_DIR"] = str(uploads.own())

expect.set_options(timeout=40_000)  # a loaded machine is no failure


@contextmanager
def served(llava, folder, **options):
    """The page's address."""
    built = page.build(llava, examples=folder, **options)
    running = server.serve(built, quiet=True)
    try:
        yield running.url
    finally:
        running.close()


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


@pytest.fixture(scope="module")
def url(llava, scenes):
    with served(llava, scenes) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as it:
        yield it


@pytest.fixture
def complaints():
    """What scripts and requests did wrong: nothing, in the end."""
    found = []
    yield found
    assert not found, "\n".join(found)


@pytest.fixture
def visit(browser, url, complaints, monkeypatch):
    """Open the page; in the end, no script has failed and no request has left the machine. Answers are short here."""
    opened, engine = [], board.generate
    monkeypatch.setattr(board, "generate", lambda *a, **o: engine(*a, **o | {"max_new_tokens": 20}))

    def visit_(width=1440, query="", address=url, **context):
        tab = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
        watch(tab, address, complaints)
        tab.goto(address + query)
        tab.wait_for_function("window.longtailFollowed")  # the page is there, and as its address says
        opened.append(tab)
        return tab

    yield visit_
    for tab in opened:
        tab.context.close()
    idle()


def watch(tab, url: str, complaints: list):
    """Note what scripts and requests do wrong."""
    tab.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
    tab.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)


def working() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "comparison"]


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


def ran(tab):
    """Press Run and wait until that run is over: what an earlier one said is wiped away, its event is done with."""
    idle()
    tab.wait_for_timeout(300)  # Gradio passes a click over until the browser has read that the event before is complete
    tab.locator("#message p").evaluate("it => { it.textContent = ''; }")
    press(tab, "Run")
    says(tab, "Done")


def refuses(tab, sentence):
    expect(tab.locator("#trouble")).to_contain_text(sentence)


@contextmanager
def holding(tab):
    """What the page asks of the server waits until this is left."""
    held = []
    tab.route("**/run/predict*", lambda route: held.append(route))
    yield
    for route in held:
        route.continue_()
    tab.unroute("**/run/predict*")


def slowly(monkeypatch, first=0.0, each=0.0, name="generate", of=board):
    """Have the engine take its time."""
    engine = getattr(of, name)

    def generate(*arguments, **options):
        time.sleep(first)
        for answer in engine(*arguments, **options):
            yield answer
            time.sleep(each)

    monkeypatch.setattr(of, name, generate)
