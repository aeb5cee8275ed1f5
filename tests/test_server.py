"""What strangers may do to the page: routes, files, bodies, headers, uploads, the log, metrics, and how it ends."""

import fcntl
import http.client
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from gradio_client import Client, handle_file
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
from demo import early, guard, journal, page, policy, server, uploads
from longtail.models.loading import Progress

ROOT = Path(__file__).parents[1]
PICTURE = str(ROOT / "assets" / "examples" / "relation.png")
API = "/gradio_api"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
SECRET = "a question about the neighbour"
EVIL = "evil.example"


@pytest.fixture(scope="module")
def running(llava, scenes):
    running = server.serve(page.build(llava, examples=scenes, time_limit=30), quiet=True)
    yield running
    running.close()


@pytest.fixture(scope="module")
def visitor(running):
    with httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def uploaded(visitor, name: str, content: bytes) -> str:
    return visitor.post(f"{API}/upload", files={"files": (name, content)}).json()[0]


def sentence(reply: httpx.Response) -> str:
    """What a refusal says."""
    return reply.text if reply.headers["content-type"].startswith("text/plain") else reply.json()["detail"]


# ---- what a browser is held to


def test_every_response_has_the_headers(visitor):
    asked = ["/", "/config", "/theme.css", "/static/img/logo.svg", "/healthz", "/nothing", f"{API}/file=/etc/passwd"]
    asked.append(f"{API}/file={uploaded(visitor, 'x.png', b'x')}")
    for path in asked:
        headers = visitor.get(path).headers
        assert {name: headers.get(name) for name in policy.HEADERS} == policy.HEADERS, path
        assert "frame-ancestors" in headers["content-security-policy"], path


def test_the_pages_policy_names_its_own_scripts_and_no_others(visitor):
    reply = visitor.get("/")
    allowed = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    scripts = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", reply.text, re.DOTALL)
    hashes = {f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts}
    assert len(scripts) == 5 and hashes == set(allowed["script-src"].split()) - {"'self'", "'unsafe-eval'"}
    assert allowed["default-src"] == "'none'" and allowed["frame-ancestors"] == "'self'"
    assert allowed["connect-src"] == "'self' data: blob:" and "http" not in " ".join(allowed.values())
    assert reply.headers["cache-control"] == "no-store"


def test_who_may_frame_the_page():
    assert policy.of(b"", ("https://example.org",)).endswith("frame-ancestors 'self' https://example.org")
    assert policy.SHARED in policy.of(b"", shared=True) and policy.SHARED not in policy.of(b"")
    assert app.parsed(["--frame-ancestors", "https://a.org, https://*.b.org:8"]).frame_ancestors == (
        "https://a.org",
        "https://*.b.org:8",
    )
    with pytest.raises(ValueError, match=r"must be sites such as https://example\.org"):
        app.parsed(["--frame-ancestors", "https://a.org; script-src *"])


@pytest.mark.parametrize("name", ["x.svg", "x.html", "x.js"])
def test_what_was_uploaded_is_never_a_page(visitor, name):
    path = uploaded(visitor, name, SVG)
    for reply in (visitor.get(f"{API}/file={path}"), visitor.get(f"{API}/file={path}", headers={"range": "bytes=0-5"})):
        assert reply.status_code == 200 and reply.content == SVG
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in reply.headers["content-security-policy"] and reply.headers["cache-control"] == "private"


# ---- what is served


CLOSED = (
    "/docs /openapi.json /monitoring /monitoring/summary /svelte/x /pwa_icon /login /healthz/ /config//",
    "/user /token /login_check /deep_link?session_hash=x /queue/status /dev/reload /runs /run-history/buckets",
    "/vibe-code /custom_component/x/client/component/x.js /profiling/traces /stream/a/b/1/playlist-file /mcp /mcp/sse",
    "/proxy=https://example.org/ /file/etc/passwd /file=https://example.org/ /file=HTTP://127.0.0.1/ /file=file:///etc",
)


def test_what_the_page_does_not_need_is_not_there(visitor):
    paths = CLOSED[0].split() + [API + path for line in CLOSED[1:] for path in line.split()]
    assert {path: visitor.get(path).status_code for path in paths} == dict.fromkeys(paths, 404)
    posted = "vibe-edit undo-vibe-edit vibe-code vibe-starter-queries process_recording component_server stream/abc"
    assert {visitor.post(f"{API}/{path}", json={}).status_code for path in posted.split()} == {404}
    assert {visitor.request(verb, "/").status_code for verb in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")} == {404}


def test_mcp_has_its_route_where_it_is_served():
    open_, closed = guard.Rules(None, None, mcp=True), guard.Rules(None, None)
    assert open_.route("POST", f"{API}/mcp/") and open_.route("GET", f"{API}/mcp/schema")
    assert closed.route("POST", f"{API}/mcp/") is None


def test_no_file_outside_the_allowed_ones_is_read(visitor):
    for path in (
        "/etc/passwd //etc/passwd /proc/self/environ app.py README.md %2e%2e/app.py ..%5capp.py ~/.bashrc "
        f"{ROOT}/app.py {ROOT}/assets/examples/../tiny/config.json {ROOT}/demo/%2e%2e/app.py {uploads.LOCK} "
        f"{os.environ['GRADIO_TEMP_DIR']}/../../etc/passwd"
    ).split():
        assert visitor.get(f"{API}/file={path}").status_code in (403, 404), path
    for path in ("/static/..%2f..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/routes.py"):
        assert visitor.get(path).status_code == 403, path


def test_nobody_is_led_to_another_site(visitor):
    elsewhere = {"host": EVIL, "x-forwarded-host": EVIL}
    for path in ("/logout", f"/logout?_target_url=https://{EVIL}", f"/?_target_url=https://{EVIL}"):
        assert EVIL not in visitor.get(path, headers=elsewhere).headers.get("location", "")
    reply = visitor.post("/login", data={"username": "a", "password": "b"}, headers=elsewhere)
    assert reply.status_code == 302 and reply.headers["location"] == "/"
    assert visitor.get("/config", headers={"x-forwarded-host": 'a:b"c'}).status_code == 400


def test_another_sites_script_may_not_ask(visitor):
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": f"https://{EVIL}"}, {"origin": "null"}):
        for path in (f"{API}/run/predict", f"{API}/upload", "/login"):
            assert visitor.post(path, headers=headers).status_code == 403, (headers, path)
        assert visitor.get("/config", headers=headers).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert visitor.get("/", headers=link).status_code == 200
    assert visitor.post("/login", headers=link).status_code == 403
    own = {"origin": str(visitor.base_url).rstrip("/")}
    assert visitor.get("/config", headers=own | {"sec-fetch-site": "same-origin"}).status_code == 200
    assert visitor.get("/config", headers=own).status_code == 200


# ---- what comes in


def test_bodies_are_bounded(visitor):
    def chunks(count):
        for _ in range(count):
            yield b"x" * 2**16

    for path in (f"{API}/queue/join", f"{API}/run/predict", f"{API}/upload", "/login", f"{API}/cancel"):
        announced = http.client.HTTPConnection(visitor.base_url.host, visitor.base_url.port, timeout=10)
        announced.putrequest("POST", path)
        announced.putheader("Content-Length", str(guard.ASKED + 1))
        announced.endheaders()
        reply = announced.getresponse()
        assert reply.status == 413 and b"too large: at most" in reply.read(), path
        announced.close()
    reply = visitor.post(f"{API}/cancel", content=chunks(3), headers={"content-type": "application/json"})
    assert reply.status_code == 413 and "at most 65,536 bytes" in sentence(reply)
    reply = visitor.post("/login", content=chunks(2), headers={"content-type": "application/x-www-form-urlencoded"})
    assert reply.status_code == 413
    assert visitor.request("GET", "/config", content=b"x").status_code == 413
    many = b'{"data": [' + b"[]," * guard.VALUES + b'[]], "fn_index": 0}'
    for path in (f"{API}/queue/join", f"{API}/run/predict", f"{API}/call/answer"):
        reply = visitor.post(path, content=many, headers={"content-type": "application/json"})
        assert reply.status_code == 413 and "20,000 values" in sentence(reply), path


def test_a_file_is_bounded(visitor, running):
    reply = visitor.post(f"{API}/upload", files={"files": ("x.png", b"x" * (guard.UPLOAD + 1))})
    assert reply.status_code == 413 and "20" in reply.text
    reply = visitor.post(f"{API}/upload", files={"files": ("x.png", b"x" * (guard.WHOLE + 1))})
    assert reply.status_code == 413 and reply.text.startswith("The file is too large: at most 20 MB are taken")
    assert running.blocks.max_file_size == guard.UPLOAD == 20 * 2**20 and running.blocks.state_session_capacity == 500


def test_no_room_is_said(visitor, running, monkeypatch):
    monkeypatch.setattr(running.uploads, "most", 1000)
    reply = visitor.post(f"{API}/upload", files={"files": ("x.png", b"x" * 2000)})
    assert reply.status_code == 503 and "try again in a minute" in reply.text


DEEP = b"[" * 5000 + b"]" * 5000
BODIES = [
    b"",
    b"\xff{",
    b"null",
    b"[]",
    DEEP,
    b'{"data": ' + DEEP + b"}",
    b'{"data": [' + DEEP[4600:5400] + b'], "fn_index": 0, "session_hash": "p"}',
    b"{}",
    b'{"data": "x"}',
    b'{"data": [NaN, Infinity]}',
    b'{"data": [1' + b"0" * 5000 + b"]}",
    b'{"data": ["\\ud800"], "session_hash": "p", "fn_index": 0}',
    *(b'{"data": [], "session_hash": "p", "fn_index": %s}' % i for i in (b"-1", b"99999", b'"x"', b"1.5", b"null")),
    b'{"data": [], "fn_index": 0, "session_hash": []}',
    b'{"data": [], "fn_index": 0, "session_hash": "p", "trigger_id": 99999, "event_data": "x", "event_id": "../x"}',
    b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "session_hash": "p", "fn_index": 0}',
]
POSTED = "run/predict run/nope call/methods call/answer call/nope call/v2/answer call/v2/nope queue/join cancel reset"


def test_no_body_is_a_failure_of_ours(visitor):
    failed = []
    for body in BODIES:
        for path in [f"{API}/{path}" for path in POSTED.split()] + [f"{API}/upload", "/login"]:
            reply = visitor.post(path, content=body, headers={"content-type": "application/json"})
            said = reply.status_code == 200 or reply.text.strip()
            failed += [(path, body[:60], reply.status_code)] if reply.status_code >= 500 or not said else []
    for kind in ("text/plain", "multipart/form-data", "multipart/form-data; boundary=x", "application/json; charset=x"):
        for path in [*POSTED.split(), "upload"]:
            reply = visitor.post(f"{API}/{path}", content=b'{"data": []}', headers={"content-type": kind})
            failed += [(path, kind, reply.status_code)] if reply.status_code >= 500 else []
    assert not failed


ODD = [[], ["x"], [{"path": "/etc/passwd"}, 1e308, [[]]], [None, True, {"a": []}]]


def test_no_value_is_a_failure_of_ours(visitor, running):
    """Every event of the page that needs no queue, with values that it never sends."""
    events = [event for event in running.blocks.config["dependencies"] if not event["queue"] and event["backend_fn"]]
    seen, failed = set(), []
    for event in events:
        if (shape := (event["api_name"], len(event["inputs"]))) in seen:
            continue  # the same of another column
        seen.add(shape)
        for odd in ODD:
            values = (odd * len(event["inputs"]))[: len(event["inputs"])]
            asked = {"data": values, "fn_index": event["id"], "session_hash": "odd"}
            reply = visitor.post(f"{API}/run/predict", json=asked)
            if reply.status_code >= 500 or (reply.status_code != 200 and not reply.json()["error"]):
                failed.append((event["api_name"], odd, reply.status_code))
    assert len(seen) > 15 and not failed


def test_a_failure_of_ours_is_one(visitor, running, monkeypatch, caplog):
    """A full disk is no visitor's fault: 500, a sentence, and the log has its place."""

    def full(*arguments, **options):
        raise OSError(28, f"No space left on device: {SECRET}")

    event = next(e for e in running.blocks.config["dependencies"] if not e["queue"] and e["backend_fn"])
    monkeypatch.setattr(running.blocks.fns[event["id"]], "fn", full)
    with caplog.at_level(logging.INFO):
        values = [None] * len(event["inputs"])
        reply = visitor.post(f"{API}/run/predict", json={"data": values, "fn_index": event["id"]})
    assert reply.status_code == 500 and reply.json()["error"] == guard.BROKEN
    assert [record.exc_info[0] for record in caplog.records if record.name == "longtail" and record.exc_info] == [
        OSError
    ]


# ---- the folder of uploads


def test_the_oldest_go_first_and_none_too_young(tmp_path):
    held = uploads.Uploads(tmp_path, most=100, most_files=10, at_once=1)
    aged(tmp_path / "own", 40, 9000)
    held.keep()
    aged(tmp_path / "a" / "old", 30, 300)
    aged(tmp_path / "b" / "older", 20, 400)
    aged(tmp_path / "c" / "young", 5, 5)
    aged(tmp_path / "d" / "ancient", 1, 3590)
    held.tidy()
    assert not (tmp_path / "d" / "ancient").exists() and (held.bytes, held.files) == (95, 4)
    assert held.room(20) and not (tmp_path / "b" / "older").exists() and (tmp_path / "a" / "old").exists()
    assert held.room(50) and not (tmp_path / "a" / "old").exists()
    assert not held.room(60) and (tmp_path / "c" / "young").exists() and (tmp_path / "own").exists()
    os.utime(tmp_path / "b", (time.time() - 300,) * 2)
    held.tidy()
    assert not (tmp_path / "b").exists() and (tmp_path / "c").exists(), "an empty folder goes later"


def test_small_files_are_bounded_too(tmp_path):
    """By the most that a request may bring, whatever they are called."""
    held = uploads.Uploads(tmp_path, most=100, most_files=5, at_once=2)
    for name in ("1", "2", "3"):
        aged(tmp_path / name, 1, 10)
    aged(tmp_path / "a" / uploads.LOCK, 1, 10)
    (tmp_path / uploads.LOCK).touch()
    held.tidy()
    assert held.files == 4 and not held.room(1)
    aged(tmp_path / "a" / uploads.LOCK, 1, 100)
    assert held.room(1) and not (tmp_path / "a" / uploads.LOCK).exists() and (tmp_path / uploads.LOCK).exists()
    assert held.room(1), "they are counted anew: none came"
    for name in ("4", "5"):
        aged(tmp_path / name, 1, 10)
    assert not held.room(1)


def aged(path: Path, size: int, seconds: float):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    for place in (path, path.parent):
        os.utime(place, (time.time() - seconds,) * 2)


def test_what_the_dead_left_is_swept_and_no_living_one(tmp_path):
    dead = tmp_path / f"{uploads.PREFIX}dead"
    dead.mkdir()
    (dead / uploads.LOCK).touch()
    (dead / "picture.png").touch()
    for name in ("unlocked", "file"):  # of a version without locks, or another program's: not ours to judge
        (tmp_path / f"{uploads.PREFIX}{name}").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / uploads.LOCK).touch()
    (tmp_path / f"{uploads.PREFIX}link").symlink_to(elsewhere)
    living = tmp_path / f"{uploads.PREFIX}living"
    living.mkdir()
    with open(living / uploads.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own = uploads.own(str(tmp_path))
        assert own.is_dir() and living.is_dir() and not dead.exists()
        assert elsewhere.is_dir() and (tmp_path / f"{uploads.PREFIX}unlocked").is_dir()
    assert uploads.sweep(str(tmp_path)) == 1 and own.is_dir() and not living.exists()


# ---- health, readiness, metrics


def test_ready_says_why_not(visitor, running, monkeypatch):
    assert visitor.get("/healthz").json() == {"alive": True} and visitor.get("/readyz").json() == {"ready": True}
    monkeypatch.setattr(running.host.line, "stuck", lambda: "the model has not been heard of")
    assert not_ready(visitor) == "the model has not been heard of"
    monkeypatch.setattr(running.host, "llava", None)
    monkeypatch.setattr(running.host, "name", "llava-1.5-7b")
    assert not_ready(visitor) == "the model llava-1.5-7b is being loaded"
    monkeypatch.setattr(running, "closing", SimpleNamespace(is_set=lambda: True))
    assert not_ready(visitor) == "the server is shutting down" and visitor.get("/healthz").status_code == 200


def not_ready(visitor) -> str:
    reply = visitor.get("/readyz")
    assert reply.status_code == 503 and reply.json()["ready"] is False
    return reply.json()["why"]


def test_runs_are_counted(visitor, running):
    before = samples(visitor)
    client = Client(running.url, verbose=False)
    given = {"image": handle_file(PICTURE), "question": SECRET, "max_new_tokens": 4}
    client.submit(**given, method="TopK", api_name="/answer").result(timeout=60)
    with pytest.raises(Exception, match="There is no method 'Nope'"):
        client.submit(**given, method="Nope", api_name="/answer").result(timeout=60)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and samples(visitor).get("longtail_failures_total{cause=refused}", 0) < 1:
        time.sleep(0.05)
    after = samples(visitor)
    counted = {name: value - before.get(name, 0) for name, value in after.items()}
    assert counted["longtail_runs_total{cause=done,kind=answer}"] == 1
    assert (
        counted["longtail_runs_total{cause=refused,kind=answer}"] == counted["longtail_failures_total{cause=refused}"]
    )
    assert (
        counted["longtail_ttft_seconds_count{method=TopK}"] == 1 == counted["longtail_tpot_seconds_count{method=TopK}"]
    )
    assert 1 <= after["longtail_uploads_files{}"] < 100 and after["longtail_ready{}"] == 1, "what is there, no reserve"
    assert after["longtail_running{}"] == after["longtail_waiting{}"] == 0
    assert after["process_resident_memory_bytes{}"] > 10**8
    assert any(name.startswith("longtail_model_info{device=cpu,") for name in after)
    assert SECRET not in visitor.get("/metrics").text


def samples(visitor) -> dict[str, float]:
    families = text_string_to_metric_families(visitor.get("/metrics").text)
    named = [
        (sample.name, sorted(sample.labels.items()), sample.value) for family in families for sample in family.samples
    ]
    return {f"{name}{{{','.join(f'{key}={of}' for key, of in labels)}}}": value for name, labels, value in named}


def test_metrics_may_be_off(llava, scenes, monkeypatch):
    monkeypatch.setattr(server.look, "launching", lambda share: {})
    launched = {}
    built = page.build(None, examples=scenes)
    monkeypatch.setattr(built, "launch", lambda **options: launched.update(options))
    built.local_url = ""
    server.serve(built, metrics=False)
    assert [route.path for route in launched["app_kwargs"]["routes"]] == ["/healthz", "/readyz"]


# ---- the log


RECORD = {
    "method": "TopK",
    "tokens": {"visual": 9, "generated": 4},
    "seconds": {"first_token": 0.25, "per_token": 0.01},
    "question": SECRET,
    "answer": "a secret answer",
}


@pytest.fixture
def told(monkeypatch):
    """The log in a form, as lines."""
    kept = logging.getLogger().handlers[:], logging.getLogger().level, threading.excepthook
    stream = io.StringIO()

    def told_(form="json", content=False):
        monkeypatch.setattr(sys, "stderr", stream)
        journal.listen(form, content)
        return lambda: [line for line in stream.getvalue().splitlines() if line]

    yield told_
    logging.getLogger().handlers[:], level, threading.excepthook = kept
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("content", [False, True])
def test_a_run_is_one_line_without_its_words(told, content):
    lines, kept = told(content=content), journal.Journal(content)
    kept.ran("answer", "done", 0.5, 1.25, [RECORD])
    kept.ran("run", "memory", 0.0, 2.0)
    done, failed = map(json.loads, lines())
    assert (done["kind"], done["cause"], done["waited"], done["seconds"]) == ("answer", "done", 0.5, 1.25)
    answer = {"method": "TopK", "visual": 9, "generated": 4, "ttft": 0.25}
    words = {"question": SECRET, "answer": "a secret answer"} if content else {}
    assert done["answers"] == [answer | words] and done["level"] == "info" and failed["level"] == "warning"


@pytest.mark.parametrize("form", journal.FORMS)
def test_an_error_is_logged_without_what_it_quotes(told, form):
    lines = told(form)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=True)
    fallen = threading.Thread(target=lambda: 1 / 0)
    fallen.start()
    fallen.join()
    text = "\n".join(lines())
    assert "ValueError" in text and "test_server.py" in text and "ZeroDivisionError" in text and SECRET not in text
    assert form == "plain" or [json.loads(line)["level"] for line in lines()] == ["error", "error"]


def test_nothing_of_a_visitor_is_printed(visitor, capfd, told):
    """Not by Gradio, whose tracebacks quote what was sent, and not by the server."""
    lines = told()
    for asked in ({"data": [SECRET]}, {"data": [{"path": f"/{SECRET}"}]}, {"data": [SECRET] * 9, "fn_index": 3}):
        for path in ("run/predict", "call/answer", "call/v2/answer", "queue/join"):
            visitor.post(f"{API}/{path}", json=asked | {"session_hash": "s"}, params={"q": SECRET})
    visitor.post(f"{API}/upload", files={"files": (f"{SECRET}.png", b"x")})
    visitor.get(f"{API}/file=/{SECRET}")
    out, err = capfd.readouterr()
    assert SECRET not in out + err + "".join(lines()) and "Traceback" not in out + err
    assert "127.0.0.1" not in "".join(lines())
    assert all(json.loads(line) for line in lines())


# ---- before the page is there


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_port_answers_while_the_model_is_loaded(monkeypatch):
    for name in ("SPACE_ID", "SPACES_ZERO_GPU", "LONGTAIL_HOST", "LONGTAIL_PORT"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    door = early.answering(["--model", "x", "--port", str(port), "--share"])
    here = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{here}/healthz").status_code == 200
    door.tell(Progress("weights", 3 * 2**30, 13 * 2**30, "model-00001.safetensors"))
    waiting = httpx.get(f"{here}/readyz")
    assert waiting.status_code == 503
    assert waiting.json()["why"] == "the model is being loaded: weights, 3.0 of 13.0 GiB, model-00001.safetensors"
    loading = httpx.get(f"{here}/?q=%3Cscript%3E")
    assert loading.status_code == 503 and loading.headers["retry-after"] and "script" not in loading.text
    assert 'http-equiv="refresh"' in loading.text and "3.0 of 13.0 GiB" in loading.text
    assert httpx.get(f"{here}/config").status_code == httpx.post(f"{here}/login").status_code == 503
    assert early.answering(["--port", str(port)]) is None, "the port is taken: app.py says so"
    assert door.hand_over() == port
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{here}/healthz")


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port"], ["--help"], ["--port", "70000"]])
def test_bad_flags_are_left_to_who_says_so(arguments):
    assert early.answering(arguments) is None


def test_a_space_watches_its_port_itself(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "some_body/long.tail")
    assert early.answering(["--port", str(free_port())]) is None


# ---- how it ends


class Slow:
    """A line whose work takes a while, and may not stop."""

    def __init__(self, ends: bool):
        self.ends, self.heard = ends, []

    def close(self):
        self.heard.append("close")

    def stop(self):
        self.heard.append("stop")

    def drained(self, seconds):
        self.heard.append(seconds)
        return self.ends and "stop" in self.heard


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_goes_on_is_stopped_after_ten_seconds(ends):
    line, closed = Slow(ends), []
    blocks = SimpleNamespace(server=SimpleNamespace(config=SimpleNamespace()), close=lambda verbose: closed.append(1))
    blocks.host = SimpleNamespace(line=line, journal=journal.Journal(), llava=None, name=None)
    ending = server.Served(blocks, False, (), False, False)
    assert ending.close() is ends and closed
    assert line.heard == ["close", 10.0, "stop", 2.0] and ending.unready() == "the server is shutting down"


@pytest.fixture
def started(tmp_path):
    """Start app.py, its folders in `tmp_path`; a second start takes the same port."""
    processes, port = [], free_port()
    left_out = ("LONGTAIL", "SPACE", "GRADIO")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def started_(*flags):
        command = [sys.executable, "app.py", "--port", str(port), *flags]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        return processes[-1], f"http://127.0.0.1:{port}"

    yield started_
    for process in processes:
        process.kill()
        process.communicate()


def until(url: str, path: str):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            reply = httpx.get(url + path, timeout=5)
            if reply.status_code == 200:
                return
            assert path != "/readyz" or reply.json()["why"]
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"{path} did not come")


def test_it_is_killed_and_starts_again_and_drains_when_it_is_told_to_end(started, folder, tmp_path):
    killed, url = started("--model", "none")
    until(url, "/healthz")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (left,) = tmp_path.glob(f"{uploads.PREFIX}*")

    process, url = started("--model", str(folder), "--time-limit", "30")
    until(url, "/readyz")
    (own,) = tmp_path.glob(f"{uploads.PREFIX}*")
    assert own != left, "what the killed one left is swept"
    client = Client(url, verbose=False)
    given = {"image": handle_file(PICTURE), "question": SECRET, "api_name": "/compare"}
    working = client.submit(**given, methods=["Full"] * 4, repeat=4, max_new_tokens=40)
    deadline = time.monotonic() + 20
    while httpx.get(f"{url}/metrics").text.count("longtail_running 1.0") == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    refused = client.submit(**given, methods=["Full"], max_new_tokens=1)
    with pytest.raises(Exception):  # noqa: B017 (by the line, or the port is closed already)
        refused.result(timeout=30)
    assert len(working.result(timeout=30)["answers"]) == 4, "the running work ended as it should"
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not own.exists()
    lines = [json.loads(line) for line in err.splitlines()]
    assert SECRET not in err and {line["message"] for line in lines} >= {"shutting down", "compare: done"}
