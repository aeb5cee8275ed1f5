"""The malformed files sent through every way in: the decoder, the page, the API, the command line. `soak` is the whole.

A way in fails where a process dies, where our code answers 5xx, where a refusal is no sentence with its reason or comes
late, and where memory grows.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

import malformed
from malformed import EITHER, PICTURE, REFUSAL, Malformed

import longtail.__main__ as command
from longtail import BadImage, load, open_image
from longtail.models import miniatures

ROOT = Path(__file__).parents[1]
REASONS = re.compile(
    "not a readable PNG, JPEG, WEBP, GIF or BMP file|damaged or cut short|too large|too thin a strip|scans, more than"
    "|more than [0-9,]+ parts|there is no image file|no longer on this server|exceeded maximum allowed size",
    re.IGNORECASE,
)
FILE = {"_type": "gradio.FileData"}
SENT = re.compile(r"^data: (.*)$", re.MULTILINE)
Way = Callable[[Malformed, bytes], tuple[str, str]]  # outcome and words
LATE, GROWTH, PROCESSES = 0.5, 300, 8  # seconds, MB, real processes of the command line


@dataclass(frozen=True)
class Said:
    """What one way in said of one file."""

    file: Malformed
    outcome: str  # picture, refusal, or what else happened
    words: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with it, or nothing."""
        if self.outcome not in (PICTURE, REFUSAL):
            return f"{self.file.name}: {self.outcome}: {self.words[:200]}"
        if self.outcome != self.file.expected and self.file.expected != EITHER:
            return f"{self.file.name}: a {self.file.expected} was expected, this was a {self.outcome}: {self.words}"
        sentence = self.words.isprintable() and len(self.words) < 400 and REASONS.search(self.words)
        return f"{self.file.name}: no sentence: {self.words!r}" if self.outcome == REFUSAL and not sentence else ""


def sent(way: Way, some: Iterable[Malformed]) -> list[Said]:
    """What a way in says of each file."""
    said = []
    for file in some:
        data, begin = file.make(), time.perf_counter()
        outcome, words = way(file, data)
        said.append(Said(file, outcome, words, time.perf_counter() - begin))
    return said


def sample(step: int) -> list[Malformed]:
    """Every so manieth of the lighter files, and of each kind one."""
    every = malformed.files()
    firsts = {file.kind: file for file in reversed(every)}
    return [file for n, file in enumerate(every) if n % step == 0 or firsts[file.kind] is file]


# ---- the ways in


def decoder(file: Malformed, data: bytes) -> tuple[str, str]:
    """The bytes, straight to the decoder."""
    try:
        image = open_image(data)
    except BadImage as refusal:
        return REFUSAL, str(refusal)
    return (PICTURE, "") if image.mode == "RGB" and min(image.size) else ("mode", image.mode)


@contextmanager
def command_line(llava):
    """`longtail answer` in this process, on a model that is loaded."""
    before, command.load = command.load, lambda **place: llava
    with tempfile.TemporaryDirectory() as folder:

        def way(file: Malformed, data: bytes) -> tuple[str, str]:
            path = Path(folder) / file.file
            path.write_bytes(data)
            try:
                return said_by(["answer", str(path), "What is it?", "--max-new-tokens", "1"])
            finally:
                path.unlink()

        try:
            yield way
        finally:
            command.load = before


def said_by(arguments: list[str]) -> tuple[str, str]:
    """What the command line says and does."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = command.main(arguments)
    return judged(status, out.getvalue(), err.getvalue())


def judged(status: int, out: str, err: str) -> tuple[str, str]:
    """The command line's exit status and words as an outcome."""
    if status == 0 and out:
        return PICTURE, ""
    line = err.removeprefix("longtail: ").removesuffix("\n")
    return (REFUSAL, line) if status == 2 and "\n" not in line and not out else (f"exit {status}", err)


def process(path: Path, model: str) -> tuple[str, str]:
    """The command line as a process of its own."""
    line = [sys.executable, "-m", "longtail", "compare", str(path), "What is it?", "--model", model]
    line += ["--methods", "Full", "--max-new-tokens", "1", "--device", "cpu"]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return judged(ran.returncode, ran.stdout, ran.stderr)


class Served:
    """The page and its API at an address."""

    def __init__(self, url: str):
        self.url, self.http = url, httpx.Client(base_url=url + "gradio_api/", timeout=120)
        config = httpx.get(url + "config").json()
        parts = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.picture = next(part["id"] for part in config["components"] if part["type"] == "image")
        events = (event for event in config["dependencies"] if [self.picture, "upload"] in map(list, event["targets"]))
        self.event = max(events, key=lambda event: len(event["outputs"]))
        self.trouble, self.kept = (self.event["outputs"].index(part) for part in (parts["trouble"], self.picture))

    def uploaded(self, file: Malformed, data: bytes) -> tuple[dict | None, str]:
        """The file on the server, or why it is not there."""
        name = file.file.encode(errors="replace").decode()
        answer = self.http.post("upload", files={"files": (name, data)})
        path = answer.json()[0] if answer.status_code == 200 else None
        return path and {"path": path, "meta": FILE, "orig_name": name}, answer.text

    def page(self, file: Malformed, data: bytes) -> tuple[str, str]:
        """An upload, and the event that the browser posts of it."""
        upload, why = self.uploaded(file, data)
        return self.posted(upload) if upload else (REFUSAL, why)

    def posted(self, upload: object) -> tuple[str, str]:
        """What the page's event says of an upload."""
        body = {"data": [upload], "fn_index": self.event["id"], "trigger_id": self.picture, "session_hash": "hostile"}
        answer = self.http.post("run/predict", json=body)
        if answer.status_code != 200:
            return str(answer.status_code), answer.text
        said = answer.json()["data"]
        words = said[self.trouble]
        return (REFUSAL, words) if words else (PICTURE, "")

    def answer(self, file: Malformed, data: bytes) -> tuple[str, str]:
        """An upload, and a question about it to the API."""
        upload, why = self.uploaded(file, data)
        return self.asked(upload) if upload else (REFUSAL, why)

    def asked(self, image: object) -> tuple[str, str]:
        """What the API answers about an image."""
        call = self.http.post("call/answer", json={"data": [image, "What is it?", "Full", None, 1, 0, 0]})
        if call.status_code != 200:
            return str(call.status_code), call.text
        told = self.http.get(f"call/answer/{call.json()['event_id']}")
        said = json.loads(SENT.findall(told.text)[-1])
        if told.status_code != 200 or not said:
            return str(told.status_code), told.text
        return (REFUSAL, said["error"]) if "error" in said else (PICTURE, "")


@contextmanager
def served(llava):
    """The page, served as app.py serves it."""
    from demo import page, server

    running = server.serve(page.build(llava, time_limit=30), quiet=True)
    try:
        yield Served(running.url)
    finally:
        running.close()


# ---- the whole


Figure = tuple[str, float, float, bool]  # what, how much, at most, whether it is


def soak() -> list[Figure]:
    """Every file through every way in, the heavy ones too; a few minutes. Linux, for the memory."""
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as folder:
        miniatures.write("llava-1.5", model)
        llava, every = load(model), stored(Path(folder))
        light = [file for file in every if not file.heavy]
        figures = [("malformed files", len(every), 1_000, len(every) >= 1_000)]
        figures += _figures("decoder", decoder, every)
        with command_line(llava) as way:
            figures += _figures("command line", way, light)
        figures += [_processes(model), *_crowd()]
        with served(llava) as site:
            figures += _figures("page", site.page, light)
            figures += _figures("API", site.answer, light)
    return figures


def stored(folder: Path) -> list[Malformed]:
    """All files, made by a process of their own, since some take more memory to make than they may to refuse."""
    subprocess.run([sys.executable, malformed.__file__, str(folder)], check=True)
    every = malformed.files(heavy=True)
    return [replace(file, make=(folder / str(n)).read_bytes) for n, file in enumerate(every)]


def _figures(name: str, way: Way, some: list[Malformed]) -> list[Figure]:
    """What a way in made of some files, as figures; what is wrong is printed."""
    way(some[0], some[0].make())  # what the first of all takes is no growth
    with Memory() as memory:
        said = sent(way, some)
    faults = [one.fault for one in said if one.fault]
    print(f"{name}: {dict(Counter(one.outcome for one in said))}", *faults, sep="\n  ")
    refusals = sorted((one.seconds, one.file.name) for one in said if one.outcome == REFUSAL)
    late, slowest = refusals[int(0.99 * len(refusals))], max(said, key=lambda one: one.seconds)
    print(f"  slowest: {slowest.seconds:.2f} s, {slowest.file.name}")
    return [
        (f"{name}: files with a fault, of {len(said)}", len(faults), 0, not faults),
        (f"{name}: p99 of a refusal, s", late[0], LATE, late[0] < LATE),
        (f"{name}: memory afterwards, MB more", memory.after, GROWTH, memory.after < GROWTH),
        (f"{name}: memory at its peak, MB more", memory.peak, GROWTH, memory.peak < GROWTH),
    ]


def _processes(model: str) -> Figure:
    """Paths that lead nowhere and files that are none, to processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = list(malformed.places(Path(folder)).items())[:PROCESSES]
        wrong = [
            name for name, path in paths if process(Path(path), model)[0] != (PICTURE if name == "link" else REFUSAL)
        ]
    return "processes of the command line with a fault", len(wrong), 0, not wrong


def _crowd() -> list[Figure]:
    """Sixteen visitors with forty megapixels each, at once."""
    data = malformed.flat_png(8_000, 5_000, 8, 6)

    def visitor(_):
        return open_image(data).resize((8, 8)).size

    with Memory() as one:
        visitor(0)
    with Memory() as many, ThreadPoolExecutor(16) as crowd:
        list(crowd.map(visitor, range(16)))
    return [
        ("40 megapixels with alpha: memory at its peak, MB more", one.peak, GROWTH, one.peak < GROWTH),
        ("16 of them at once: memory at its peak, times one", many.peak / one.peak, 3, many.peak < 3 * one.peak),
    ]


class Memory:
    """How much more memory this process has after a block, and had at most in it, in MB."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *raised):
        self.after, self.peak = (self._read(name) - self.before for name in ("VmRSS", "VmHWM"))

    def _read(self, name: str) -> float:
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    for figure in soak():
        print(*figure, sep="; ")
