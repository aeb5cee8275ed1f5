"""A Space: which model it starts with, its GPU in a forked process by a stand-in, its card, its daily look."""

import asyncio
import importlib.util
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import pytest
import torch
from gradio_client import Client, handle_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import app
import longtail
from demo import board, host, run, space, sweep, words
from longtail import LongTail, Reducer

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


def test_the_page_tells_the_note(here, llava, monkeypatch):
    """By way of app.py, up to the page that is launched."""
    here("cpu")
    launched = []
    monkeypatch.setattr(longtail, "load", lambda *arguments: llava)
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: launched.append(self))
    assert app.main(["--model", "llava-1.5-13b"]) == 0
    told = [words.english(str(block.value)) for block in launched[0].blocks.values() if block.elem_id == "note"]
    assert len(told) == 1 and "instead of llava-1.5-13b." in told[0]
    here("")
    assert app.main(["--model", "tiny"]) == 0
    assert not [block for block in launched[1].blocks.values() if block.elem_id == "note"]


def test_zerogpu_places_one_model_without_running_it(here, llava, monkeypatch, capsys):
    here("zero")
    monkeypatch.setattr(longtail, "load", lambda *arguments: llava)
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


def test_a_sweep_runs_there(zero, llava, tmp_path, picture):
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


def silent(llava, stop, path):
    """Works without a word until it is stopped."""
    path.with_suffix(".began").touch()
    assert stop.wait(20)
    path.touch()
    yield "too late"


def talking(llava, stop, path):
    """Says a word a moment until it is stopped."""
    while not stop.wait(0.01):
        yield "word"
    path.touch()


def failing(llava, stop, error):
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
