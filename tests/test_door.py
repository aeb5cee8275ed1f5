"""The page behind a login and under a sub-path: flags, what is served without a browser, and all of it in one."""

import re
import sys
from pathlib import Path

import gradio as gr
import httpx
import pytest
from browsing import expect, press, says, watch
from gradio_client import Client
from proxy import proxied

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
import longtail
from demo import board, page, server
from demo.login import logins

PREFIX = "/longtail"
USERS = [("ada", "sec ret:1"), ("bob", "two")]


# ---- the flags


def test_logins_are_read(tmp_path):
    file = tmp_path / "users"
    file.write_text("# who may\nada: sec ret:1 \n\nbob:two\n")
    assert logins(str(file)) == USERS


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("ada:hush\nbob hush\n", "line 2 of {} is not user:password"),
        (":hush", "line 1 of {} is not user:password"),
        ("ada:hush\n\nada:hush", "line 3 of {} names a user a second time"),
        ("# hush\n", "the file {} names no user"),
        (None, "the file {} cannot be read (No such file or directory)"),
        (b"ada:\xff", "the file {} cannot be read (it is not UTF-8 text)"),
    ],
)
def test_a_bad_file_of_logins_is_refused_without_a_word_of_it(tmp_path, capsys, monkeypatch, text, sentence):
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: pytest.fail("the model was loaded"))
    file = tmp_path / "users"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert app.main(["--auth-file", str(file)]) == 2
    out, err = capsys.readouterr()
    assert sentence.format(file) in err and "hush" not in err and len(err.strip().splitlines()) == 1 and not out


@pytest.mark.parametrize("text", ["longtail", "/", "/long tail", "/longtail?x", "ftp://here/longtail"])
def test_a_bad_root_path_is_refused(capsys, text):
    assert app.main(["--root-path", text]) == 2
    assert "must be a path such as /longtail or a whole http(s) address" in capsys.readouterr().err


def test_both_are_launched_with(monkeypatch, tmp_path, llava, launched):
    """By flag, by variable, and not at all."""
    file = tmp_path / "users"
    file.write_text("ada:sec ret:1\nbob:two\n")
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: llava)
    monkeypatch.setattr(app, "warm_up", lambda model: None)
    monkeypatch.setattr(app, "build", lambda *arguments, **options: gr.Blocks())
    assert app.main(["--auth-file", str(file), "--root-path", "/longtail/"]) == 0
    assert app.main([]) == 0
    monkeypatch.setenv("LONGTAIL_AUTH_FILE", str(file))
    monkeypatch.setenv("LONGTAIL_ROOT_PATH", "https://example.org/longtail")
    assert app.main([]) == 0
    assert [options["auth"] for _, options in launched] == [USERS, None, USERS]
    assert [options["root_path"] for _, options in launched] == [PREFIX, None, "https://example.org/longtail"]


# ---- served


@pytest.fixture(scope="module")
def behind(llava, scenes):
    """The page as app.py launches it for a proxy, and the address of the proxy."""
    built = page.build(llava, examples=scenes)
    running = server.serve(built, quiet=True, auth=USERS, root_path=PREFIX)
    with proxied(running.url, PREFIX) as outside:
        yield outside
    running.close()


def test_nothing_is_served_without_a_login(behind):
    assert httpx.get(f"{behind}config").status_code == 401
    assert httpx.post(f"{behind}gradio_api/call/methods", json={"data": []}).status_code == 401
    assert '"auth_required":true' in httpx.get(behind).text.replace(" ", "")
    assert httpx.post(f"{behind}login", data={"username": "ada", "password": "two"}).status_code == 400


def test_addresses_handed_out_have_the_path(behind):
    with httpx.Client(base_url=behind) as visitor:
        assert visitor.post("login", data={"username": "ada", "password": "sec ret:1"}).json()["success"]
        config = visitor.get("config").json()
        assert config["root"] == behind.rstrip("/")
        files = re.findall(r'"url":\s*"([^"]*/file=[^"]*)"', visitor.get("config").text)
        assert files and all(url.startswith(behind) for url in files)
        assert all(visitor.get(url).status_code == 200 for url in files)


def test_another_program_logs_in(behind):
    methods = Client(behind, auth=USERS[1], verbose=False).submit(api_name="/methods").result(timeout=30)
    assert [method["name"] for method in methods] == list(longtail.REDUCERS)


# ---- in a browser


def test_the_whole_page_works_under_a_path_behind_a_login(behind, browser, complaints, monkeypatch):
    engine = board.generate
    monkeypatch.setattr(board, "generate", lambda *a, **o: engine(*a, **o | {"max_new_tokens": 8}))
    tab = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    watch(tab, behind, complaints)
    tab.goto(behind)
    tab.locator("input").first.fill("ada")
    tab.locator("input[type=password]").fill("sec ret:1")
    press(tab, "Login")
    tab.wait_for_function("window.longtailFollowed")
    asks(tab, behind)
    draws_and_opens(tab, behind)
    with tab.expect_download() as download:
        tab.get_by_role("tab", name="Compare").click()
        press(tab, "JSON")
    assert "answers" in Path(download.value.path()).read_text()
    tab.goto(f"{behind}?q=Where%3F&m=TopK&m=Random&example=blue")
    tab.wait_for_function("window.longtailFollowed")
    expect(tab.locator("#question textarea")).to_have_value("Where?")
    tab.context.close()


def asks(tab, behind):
    """An example's picture is there, a run streams, its words stand in the address."""
    tab.locator("[data-example='1']").click()
    expect(tab.locator("#question textarea")).to_have_value("Is it blue?")
    tab.wait_for_function("document.querySelector('#ask-image img')?.naturalWidth > 0")
    assert tab.locator("#ask-image img").get_attribute("src").startswith(behind)
    tab.locator("#question textarea").fill("What is it?")
    press(tab, "Run")
    says(tab, "Done")
    tab.wait_for_url(f"{behind}?*q=What+is+it*")


def draws_and_opens(tab, behind):
    """Plotly comes from this server."""
    tab.get_by_role("tab", name="Results").click()
    expect(tab.locator(".results-chart .main-svg").first).to_be_visible()
    assert tab.evaluate("document.querySelector('script[src*=\"plotly.min.js\"]').src").startswith(behind)
    tab.wait_for_url(f"{behind}?*tab=results*")
