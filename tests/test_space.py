"""A Space: which model it starts with, its GPU in a forked process by a stand-in, its card, its daily look."""

import asyncio
import importlib.util
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
import threading
import time
import unicodedata
from contextvars import ContextVar
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gradio as gr
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
import longtail
from demo import board, host, run, space, sweep, words
from longtail import LongTail, Reducer
from longtail.models import clip

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__file__).parent / "zerogpu"
PICTURE = ROOT / "assets" / "examples" / "place.png"
MODEL = ("longtail.models", "transformers", "torch.nn", "torch.cuda", "torch.multiprocessing")
ZERO = {"SPACES_ZERO_GPU": "true", "SPACE_ID": "somebody/longtail"}


# ---- which model a Space starts with


@pytest.fixture
def here(monkeypatch):
    """Pretend to be on hardware: zero, gpu, cpu, or off Spaces."""

    def here_(hardware):
        monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
        monkeypatch.setenv("SPACE_ID", "somebody/longtail" if hardware else "")
        if hardware == "zero":
            monkeypatch.setenv("SPACES_ZERO_GPU", "true")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: hardware == "gpu")

    return here_


def refusing(name):
    """A model that cannot be loaded, whatever its name."""
    raise ValueError("LLaVA <7B> needs 14.1 GB, this machine has 2.0 GB free\nand more")


@pytest.mark.parametrize("hardware", ["zero", "gpu", "cpu", ""])
def test_what_this_runs_on(here, hardware):
    here(hardware)
    assert space.place() == hardware
    assert space.wanted() == ("llava-1.5-7b" if hardware else "tiny")


@pytest.mark.parametrize(
    "hardware, name, started",
    [("zero", "llava-1.5-7b", "llava-1.5-7b"), ("gpu", "own/llava", "own/llava"), ("", "own/llava", "own/llava"),
     ("cpu", "none", "none"), ("cpu", "tiny", "tiny")],
)  # fmt: skip
def test_a_space_starts_with_what_is_wanted(here, hardware, name, started):
    here(hardware)
    assert space.start(name, lambda name: [name], lambda: pytest.fail("the miniature")) == (started, [started], "")


def test_a_cpu_space_starts_with_the_miniature_and_says_so(here):
    here("cpu")
    name, llava, note = space.start("llava-1.5-7b", lambda name: pytest.fail("was loaded"), lambda: "miniature")
    assert (name, llava) == ("tiny", "miniature")
    assert "no GPU" in words.english(note) and words.english(note).endswith("instead of llava-1.5-7b.")


@pytest.mark.parametrize("hardware", ["zero", "gpu"])
@pytest.mark.parametrize("refusal", [ValueError, OSError, torch.OutOfMemoryError])
def test_a_refused_model_is_replaced_and_the_reason_told(here, hardware, refusal):
    here(hardware)

    def load(name):
        raise refusal("LLaVA <7B> needs 14.1 GB, 2.0 GB are free\nand more")

    name, llava, note = space.start("big", load, lambda: "miniature")
    assert (name, llava) == ("tiny", "miniature")
    assert "because big could not be loaded: LLaVA &lt;7B&gt; needs 14.1 GB, 2.0 GB are free." in words.english(note)
    with pytest.raises(refusal):
        space.start("tiny", load, lambda: "miniature")


def test_off_spaces_a_refusal_stays_one(here):
    here("")
    with pytest.raises(ValueError, match=r"needs 14\.1 GB"):
        space.start("big", refusing, lambda: pytest.fail("the miniature"))


def test_the_page_tells_the_note(here, llava, monkeypatch, launched):
    """By way of app.py, up to the page that is launched."""
    here("cpu")
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: llava)
    assert app.main(["--model", "llava-1.5-13b"]) == 0
    told = [words.english(str(block.value)) for block in launched[0][0].blocks.values() if block.elem_id == "note"]
    assert len(told) == 1 and "instead of llava-1.5-13b." in told[0]
    here("")
    assert app.main(["--model", "tiny"]) == 0
    assert not [block for block in launched[1][0].blocks.values() if block.elem_id == "note"]


def test_zerogpu_places_one_model_without_running_it(here, llava, monkeypatch, capsys):
    here("zero")
    monkeypatch.setattr(longtail, "load", lambda *arguments, **options: llava)
    monkeypatch.setattr(longtail, "answer", lambda *arguments, **options: pytest.fail("it was warmed up"))
    assert app.loaded(app.parsed([]), "tiny") is llava
    assert app.main(["--models", "tiny"]) == 2
    assert "--models cannot be had on ZeroGPU" in capsys.readouterr().err


# ---- the lent process


@dataclass(frozen=True)
class Elsewhere(Reducer):
    """Refuses, and tells the process it runs in."""

    def reduce(self, visual):
        raise ValueError(f"process {os.getpid()}")


@pytest.fixture
def zero(here, monkeypatch):
    """ZeroGPU by the stand-in, in this process; what it kept is empty."""
    here("zero")
    spec = importlib.util.spec_from_file_location("stand_in", PACKAGE / "spaces" / "__init__.py")
    stand_in = importlib.util.module_from_spec(spec)
    monkeypatch.delenv("SPACES_ZERO_GPU")
    spec.loader.exec_module(stand_in)  # which torch precedes here; the served page below has them in order
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(space, "GPU", stand_in.GPU)
    return stand_in


def asked(picture, reducers, **options):
    given = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0, "time_limit": 30.0} | options
    return board.Asked(picture, given.pop("question", "What is it?"), dict(enumerate(reducers)), **given)


def compared(llava, *given, **options) -> dict:
    """Everything that stands on the page in the end."""
    shown = {}
    for parts in board.compare(threading.Event(), llava, asked(*given, **options)):
        shown |= parts
    return shown


def names(pickled: bytes) -> set[str]:
    """The modules whose classes and functions a pickle names, and every other text in it."""
    return {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}


def test_a_comparison_is_what_it_is_here(here, zero, llava, picture):
    reducers = [longtail.Full(), LongTail(), Elsewhere()]
    there = compared(llava, picture, reducers)
    assert zero.durations == [space.seconds(3, 5)]
    assert there[2, "refusal"].startswith("Process ") and str(os.getpid()) not in there[2, "refusal"]
    here("")
    ours = compared(llava, picture, reducers)
    for column in (0, 1):
        for part in ("answer", "panel", "readings"):
            assert there[column, part] == ours[column, part]
    answers, alone = there[board.RESULT].answers, ours[board.RESULT].answers
    assert torch.equal(answers[1].first_logits, alone[1].first_logits)
    assert answers[1].curve.knee == alone[1].curve.knee and answers[1].tokens == alone[1].tokens
    assert there[board.RESULT].comparison.records[1]["versus"]["kl"] > 0


def test_nothing_of_the_model_is_pickled(zero, llava, picture):
    compared(llava, picture, [longtail.Full(), LongTail()])
    (given,), packets = zero.arguments, [packet for packet in zero.results if packet]
    assert len(packets) >= 4 and all(len(packet) < 50_000 for packet in packets)
    for pickled in (given, *packets):
        assert "longtail.tokens" in names(pickled) or "demo.board" in names(pickled)
        assert not {name for name in names(pickled) if name.startswith(MODEL)}
    _, step = pickle.loads(packets[-1])
    assert step.answer.seen is None and not len(step.answer.reduced[0].features)
    assert step.answer.visual[0].project is None and step.answer.visual[0].grid == (6, 6)
    with pytest.raises(pickle.PicklingError, match="part of the model"):
        space.packed({"answer": llava})
    for tensor in (torch.tensor([1.5]), torch.arange(3)):
        assert torch.equal(pickle.loads(space.packed(tensor)), tensor)


def test_a_follow_up_runs_the_tower_again_and_says_so(zero, llava, picture):
    first = compared(llava, picture, [longtail.Full(), LongTail()])[board.RESULT]
    shown = compared(llava, picture, [longtail.Full(), LongTail()], question="And now?", after=first)
    records = shown[board.RESULT].comparison.records
    assert [record["reused"] for record in records] == [[], []]
    assert [record["history"] for record in records] == [[["What is it?", first.answers[i].text]] for i in (0, 1)]
    assert all(record["seconds"]["vision"] > 0 for record in records) and "reused</b>" not in shown[0, "numbers"]


def test_measuring_asks_for_the_time_of_every_round(zero, llava, picture):
    shown = compared(llava, picture, [longtail.Full(), LongTail()], repeat=2, max_new_tokens=2)
    assert zero.durations == [space.seconds(2 * (1 + 2), 2)]
    assert "median (least to most) of 2" in words.english(shown[board.CONDITIONS])


def test_a_sweep_runs_there(zero, llava, tmp_path, picture, monkeypatch):
    monkeypatch.setattr(run, "get_upload_folder", lambda: str(tmp_path))
    picture.save(tmp_path / "picture.png")
    sweeping, shown = sweep._sweeping(host.Host(llava), 30.0, []), {}
    upload = {"path": str(tmp_path / "picture.png")}
    asking = upload, "What?", "this", ["LongTail", "TopK"], "budget", "4,9", 3
    for changed in sweeping(threading.Event(), *asking):
        shown |= changed
    assert zero.durations == [space.seconds(1 + 5, 3)]
    assert {row["spec"] for row in shown["rows"]} >= {"Full", "LongTail:budget=4", "TopK:budget=9"}


@pytest.mark.parametrize(
    "answers, new, wished", [(1, 128, 18), (2, 128, 25), (4, 512, 117), (24, 128, 120), (1, 1, 12)]
)
def test_a_gpu_is_asked_for_as_long_as_the_work_takes(answers, new, wished):
    assert space.seconds(answers, new) == wished


# ---- how it ends there


def silent(llava, path, stop):
    """Works without a word until it is stopped."""
    path.with_suffix(".began").touch()
    assert stop.wait(20)
    path.touch()
    yield "too late"


def talking(llava, path, stop):
    """Says a word a moment until it is stopped."""
    while not stop.wait(0.01):
        yield "word"
    path.touch()


def failing(llava, error, stop):
    """Says a word, then fails."""
    yield "word"
    raise error


@pytest.mark.parametrize("task", [silent, talking])
def test_a_stop_reaches_the_work(zero, tmp_path, task):
    stop, path, came = threading.Event(), tmp_path / "stopped", []
    worker = threading.Thread(target=lambda: came.extend(space.placed(lambda: None)(task, 60, stop, path)), daemon=True)
    worker.start()
    deadline = time.monotonic() + 20
    while not (came or zero.results) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    worker.join(10)
    assert not worker.is_alive() and path.exists() and "too late" not in came


def test_who_leaves_ends_the_work(zero, tmp_path):
    words_ = space.placed(lambda: None)(talking, 60, threading.Event(), tmp_path / "stopped")
    assert next(words_) == "word"
    words_.close()
    assert (tmp_path / "stopped").exists()


def test_the_time_of_a_lease_is_kept(zero, tmp_path):
    working = space.placed(lambda: None)(silent, space.PLACING, threading.Event(), tmp_path / "stopped")
    with pytest.raises(ValueError, match="the GPU was lent for 0 seconds: ask for fewer runs or new tokens"):
        list(working)
    assert (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    "error, arrives, sentence",
    [
        (ValueError("alpha is too large"), ValueError, "^alpha is too large$"),
        (torch.OutOfMemoryError("17 GiB"), torch.OutOfMemoryError, "17 GiB"),
        (KeyError("secret"), RuntimeError, "^ZeroGPU worker error: KeyError$"),
    ],
)
def test_an_error_there_is_the_same_here(zero, error, arrives, sentence):
    came = []
    with pytest.raises(arrives, match=sentence):
        came.extend(space.placed(lambda: None)(failing, 60, threading.Event(), error))
        pytest.fail("it went on")


def test_what_the_platform_refuses_is_said_in_plain_words():
    def lent(*asked):
        message = 'You have exceeded your quota (60s left). <a href="x">Sign up</a>.'
        raise gr.Error(message, title="ZeroGPU quota exceeded")
        yield

    with pytest.raises(ValueError, match=r"^no GPU could be had: You have exceeded your quota \(60s left\). Sign up$"):
        list(space.received(lent, threading.Event()))


def test_a_visitors_request_goes_with_the_work():
    """ZeroGPU counts quotas by it."""
    visitor, seen = ContextVar("visitor", default=None), []

    def produce(stop):
        seen.append(visitor.get())
        yield {1: 1}

    async def event():
        visitor.set("somebody")
        return [item async for item in run.streamed(produce)()]

    assert asyncio.run(event()) == [{1: 1}] and seen == ["somebody"]


# ---- a served page, the package first


def command(*code, **variables):
    """Run Python with the stand-in on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LONGTAIL", "SPACE"))}
    environment |= {"PYTHONPATH": f"{PACKAGE}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-u", *code], cwd=ROOT, env=environment, **pipes)


def test_torch_before_spaces_would_be_noticed():
    process = command("-c", "import sys; sys.modules['torch'] = sys; import spaces", **ZERO)
    assert "torch was there before `spaces`" in process.communicate(timeout=60)[0] and process.returncode == 1


def test_app_answers_on_zerogpu(folder):
    """From app.py on: imports in their order, the model placed, endpoints answering out of the lent process."""
    process = command("app.py", "--model", str(folder), "--time-limit", "20", **ZERO)
    try:
        said = ""
        while "http://" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        client = Client(said[said.index("http://") :].split()[0], verbose=False)
        given = {"image": handle_file(PICTURE), "question": "What is it?", "max_new_tokens": 4}
        record = client.submit(**given, method="LongTail", api_name="/answer").result(timeout=60)
        assert record["tokens"]["generated"] == 4 and record["curve"]["kept"] == record["tokens"]["visual"]
        several = client.submit(**given, methods=["Full", "Random"], budget=9, api_name="/compare").result(timeout=60)
        assert [answer["tokens"]["visual"] for answer in several["answers"]] == [36, 9]
    finally:
        process.terminate()
        process.communicate(timeout=20)


# ---- its card


README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = yaml.safe_load(README.split("---\n")[1])
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def a_list(of: re.Pattern):
    return lambda value: isinstance(value, list) and value and all(of.fullmatch(entry) for entry in value)


RULES = {  # the keys that the Hub's reference of Spaces documents for a Gradio one, and what it says of their values
    "title": lambda value: isinstance(value, str) and value,
    "emoji": lambda value: len(value.rstrip("\ufe0f")) == 1 and unicodedata.category(value[0]) == "So",
    "colorFrom": COLOURS.__contains__,
    "colorTo": COLOURS.__contains__,
    "sdk": {"gradio"}.__contains__,
    "sdk_version": lambda value: isinstance(value, str) and Version(value),
    "python_version": lambda value: isinstance(value, str) and re.fullmatch(r"3\.\d+(\.\d+)?", value),
    "app_file": lambda value: (ROOT / value).is_file(),
    "short_description": lambda value: 0 < len(value) <= 60,
    "license": re.compile(r"[a-z0-9.-]+").fullmatch,
    "pinned": lambda value: isinstance(value, bool),
    "fullWidth": lambda value: isinstance(value, bool),
    "header": {"mini", "default"}.__contains__,
    "base_path": lambda value: value.startswith("/"),
    "suggested_hardware": {hardware.value for hardware in SpaceHardware}.__contains__,
    "startup_duration_timeout": re.compile(r"\d+(m|h)").fullmatch,
    "models": a_list(HUB_ID),
    "datasets": a_list(HUB_ID),
    "tags": a_list(re.compile(r"[a-z0-9-]+")),
    "preload_from_hub": a_list(re.compile(r"[\w.-]+/[\w.-]+( [\w./-]+(,[\w./-]+)*( [0-9a-f]{40})?)?")),
    "hf_oauth": lambda value: isinstance(value, bool),
    "disable_embedding": lambda value: isinstance(value, bool),
    "custom_headers": lambda value: all(name.lower().startswith("cross-origin-") for name in value),
}
NEEDED = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "models"}


def test_the_card_has_documented_keys_with_values_they_may_have():
    assert NEEDED | {"suggested_hardware", "preload_from_hub"} <= CARD.keys() <= RULES.keys()
    for key, value in CARD.items():
        assert RULES[key](value), f"{key}: {value!r}"


def test_the_card_fits_requirements():
    """One Gradio, which the platform installs; no `spaces`, which its image has; a Python of ours and of ZeroGPU."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needs = {
        need.name: need for need in (Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip())
    }
    assert needs["gradio"].specifier.contains(CARD["sdk_version"]) and "spaces" not in needs
    assert "==" not in str(needs["gradio"].specifier)
    assert all(
        needs["torch"].specifier.contains(version) for version in ("2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.13.0")
    )
    supported = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert CARD["python_version"] in ("3.10.13", "3.12.12"), "ZeroGPU's"
    assert all(SpecifierSet(supported).contains(version) for version in ("3.10.13", "3.12.12"))


def test_what_is_preloaded_is_what_is_started_with():
    preloaded = dict(entry.split(" ")[:2] for entry in CARD["preload_from_hub"])
    model = "llava-hf/llava-1.5-7b-hf"
    assert space.WANTED in model and list(preloaded) == CARD["models"] == [model, *clip.CHECKPOINTS.values()]
    files = preloaded[model].split(",")
    assert {"config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors.index.json"} <= set(files)
    shards = [name for name in files if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)]
    assert shards == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)] != []


# ---- its daily look


WORKFLOW = ROOT / ".github" / "workflows" / "health.yml"
GH = """#!/bin/sh
echo "$@" >> calls
[ "$2" = list ] && cat open || true
"""


class Hub(BaseHTTPRequestHandler):
    """The Hub's API and the page of a Space: `said` has a path's status and words."""

    said: dict

    def do_GET(self):
        status, words_ = self.said.get(self.path, (404, "no"))
        self.send_response_only(status)
        self.end_headers()
        self.wfile.write(words_.encode())

    def log_message(self, *words_):
        pass


@pytest.fixture
def looked(tmp_path):
    """Run the workflow's script on a stage and a page; returns what it asked of `gh`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Said", (Hub,), {"said": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (step,) = yaml.safe_load(WORKFLOW.read_text())["jobs"]["space"]["steps"]
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    address = f"http://127.0.0.1:{server.server_port}"

    def looked_(stage, page=200, open_issue=""):
        server.RequestHandlerClass.said = {"/page": (page, "page")}
        if stage:
            runtime = {"stage": stage, "hardware": {"current": "zero-a10g"}}
            server.RequestHandlerClass.said["/api/spaces/some_body/long.tail/runtime"] = 200, json.dumps(runtime)
        (tmp_path / "open").write_text(open_issue)
        (tmp_path / "calls").write_text("")
        given = {
            "SPACE": "some_body/long.tail",
            "HUB": address,
            "PAGE": f"{address}/page",
            "TITLE": step["env"]["TITLE"],
        }
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        shell = ["bash", "-c", step["run"]]
        subprocess.run(shell, cwd=tmp_path, env={"PATH": path} | given, check=True, capture_output=True)
        return [line.split(" --")[0] for line in (tmp_path / "calls").read_text().splitlines()]

    yield looked_
    server.shutdown()
    server.server_close()


LIST, OPEN, CLOSE = "issue list", "issue create", "issue close 7"


@pytest.mark.parametrize(
    "stage, page, without, with_issue",
    [
        ("RUNNING", 200, [LIST], [LIST, CLOSE]),
        ("RUNNING_BUILDING", 302, [LIST], [LIST, CLOSE]),
        ("RUNNING", 404, [LIST, OPEN], [LIST]),
        ("SLEEPING", 404, [LIST], [LIST, CLOSE]),
        ("PAUSED", 404, [LIST], [LIST, CLOSE]),
        ("APP_STARTING", 404, [LIST], [LIST]),
        ("RUNTIME_ERROR", 200, [LIST, OPEN], [LIST]),
        (None, 200, [LIST, OPEN], [LIST]),
    ],
)
def test_a_look_at_the_space(looked, stage, page, without, with_issue):
    """One issue when it is down, none beside it, and closed when it is up again."""
    assert looked(stage, page) == without
    assert looked(stage, page, open_issue="7\n") == with_issue


def test_the_workflow_looks_daily_and_by_hand_with_no_more_rights_than_it_needs():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    when = workflow[True]  # YAML reads `on` so
    assert "workflow_dispatch" in when and re.fullmatch(r"\d+ \d+ \* \* \*", when["schedule"][0]["cron"])
    assert workflow["permissions"] == {"issues": "write"}
    job = workflow["jobs"]["space"]
    assert job["if"] == "vars.SPACE != ''" and not [step for step in job["steps"] if "uses" in step]
