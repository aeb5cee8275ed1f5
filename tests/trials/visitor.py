"""A visitor without a browser: speaks the page's own protocol over HTTP, so that many can be there at once."""

import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from gradio_client.utils import apply_diff

RUN = (  # the inputs of Run, Preview, Measure and Follow up, as `events.asking` takes them
    *("image", "budget", "question", "new", "temperature", "seed", "repeats", "model", "gpu", "width", "result"),
    *("shown", "method_1", "method_2", "method_3", "method_4"),
    *("settings_1", "settings_2", "settings_3", "settings_4"),
)
SWEEP = ("image", "question", "scope", "methods", "parameter", "values", "new")
API = {
    "answer": ("image", "question", "method", "params", "max_new_tokens", "temperature", "seed"),
    "preview": ("image", "question", "methods", "budget", "max_new_tokens", "temperature", "seed"),
    "compare": ("image", "question", "methods", "budget", "repeat", "max_new_tokens", "temperature", "seed"),
}
USUAL = {"params": None, "max_new_tokens": 128, "temperature": 0, "seed": 0, "budget": 0, "repeat": 1}


class Site:
    """What the page at an address is made of, read once for all its visitors."""

    def __init__(self, url: str):
        self.url, self.host = url.rstrip("/"), urlsplit(url).netloc
        config = httpx.get(f"{self.url}/config", timeout=60).json()
        self.parts = {part["id"]: part["props"] for part in config["components"]}
        self.events = {event["id"]: event for event in config["dependencies"]}

    def on(self, name: str, trigger: str = "click") -> list[dict]:
        """The events of the element with that id or class, in the page's order."""
        named = [at for at, props in self.parts.items() if name in (props.get("elem_id"), *_classes(props))]
        return [e for e in self.events.values() if any([at, trigger] in e["targets"] for at in named)]

    def status(self, path: str) -> int:
        """What a path is answered with."""
        return httpx.get(f"{self.url}/{path}", timeout=10).status_code

    def called(self, name: str) -> dict:
        """The event of an endpoint."""
        return next(e for e in self.events.values() if e["api_name"] == name and e["api_visibility"] == "public")

    def usual(self, event: dict) -> list:
        """What an event reads of a page that nobody touched."""
        return [self.parts[at].get("value") for at in event["inputs"]]


class Turn:
    """What became of one event: what it showed, why it was refused, when it was over."""

    def __init__(self, site: Site, event: dict):
        self.site, self.event, self.id, self.asked = site, event, None, time.perf_counter()
        self.shown: dict[int, object] = {}  # component -> what it shows
        self.said: list[dict] = []  # messages, their data left out
        self.refused, self.ended, self.over, self._last = "", None, threading.Event(), None

    def take(self, message: dict):
        """One message of the stream."""
        kind, output = message["msg"], message.get("output") or {}
        data = output.get("data")
        if kind == "process_generating" and data is not None:
            fresh = self._last is None
            self._last = (
                data if fresh else [apply_diff(was, change) for was, change in zip(self._last, data, strict=True)]
            )
            self._show(self._last)
        elif kind == "process_completed":
            self.refused = "" if message["success"] else str(output.get("error") or output)
            self._show(data or [])
            self._last = None
            self.end()
        self.said.append({name: value for name, value in message.items() if name != "output"})

    def refuse(self, why: str):
        self.refused = why
        self.end()

    def end(self):
        self.ended = self.ended or time.perf_counter()
        self.over.set()

    def wait(self, seconds: float = 120) -> "Turn":
        """Until it is over. Raises TimeoutError: it hangs."""
        if not self.over.wait(seconds):
            raise TimeoutError(f"an event hung for {seconds:g} seconds")
        return self

    def until(self, what: Callable[["Turn"], object], seconds: float = 60) -> bool:
        """Wait until that is so, or the event is over; whether it was."""
        deadline = time.perf_counter() + seconds
        while not what(self) and not self.over.is_set() and time.perf_counter() < deadline:
            time.sleep(0.002)
        return bool(what(self))

    def part(self, name: str, column: int = 0):
        """What an element shows: the page's by its id, a column's by its class."""
        found = [at for at in self.event["outputs"] if name in (_id(self.site, at), *_classes(self.site.parts[at]))]
        return self.shown.get(found[column]) if found else None

    @property
    def seconds(self) -> float:
        """From being asked until it was over."""
        return self.ended - self.asked

    def _show(self, data: list):
        for at, value in zip(self.event["outputs"], data, strict=False):
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                self.shown[at] = value
            elif "value" in value:
                self.shown[at] = value["value"]


class Visitor:
    """One open tab: a session, its heartbeat, and one stream of messages while something goes on."""

    def __init__(self, site: Site):
        self.site, self.session, self.turns = site, secrets.token_hex(6), {}
        # no https here, so no bundle of certificates is read
        self.web = httpx.Client(base_url=f"{site.url}/gradio_api/", timeout=120, verify=False)
        self.lock, self.streaming, self.sockets = threading.Lock(), False, []
        self._listen(f"heartbeat/{self.session}", lambda line: None)

    def upload(self, data: bytes | str | Path, name: str = "image.png") -> dict:
        """A file, as the page refers to it."""
        data = data if isinstance(data, bytes) else Path(data).read_bytes()
        sent = self.web.post("upload", files={"files": (name, data)})
        return {"path": sent.raise_for_status().json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def press(self, name: str, trigger: str = "click", **asked) -> Turn:
        """Press run, preview, measure, follow or sweep-go: the page's values, but those `asked` for."""
        event = next(e for e in self.site.on(name, trigger) if e["queue"] and e["backend_fn"])
        names = SWEEP if name.startswith("sweep") else RUN
        values = dict(zip(names, self.site.usual(event), strict=True)) | asked
        return self.send(event, [values[name] for name in names])

    def ask(self, *methods: str, how: str = "run", **asked) -> Turn:
        """Press a button with these methods in the columns."""
        names = [*methods, *["Full"] * (4 - len(methods))]
        columns = {f"method_{i}": method for i, method in enumerate(names, 1)}
        shown = [i < len(methods) for i in range(4)]
        return self.press(how, shown=shown, **columns, **asked)

    def call(self, endpoint: str, **asked) -> Turn:
        """Call an endpoint, as a program does."""
        return self.send(self.site.called(endpoint), [(USUAL | asked)[name] for name in API[endpoint]])

    def quick(self, event: dict, data: list, event_data=None) -> dict:
        """An event that does not stand in line: its output."""
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": event_data}
        return self.web.post("run/predict", json=body).json()

    def stop(self, name: str = "stop") -> float:
        """Press Stop, its events one after another as the page's script has them; the moment it was pressed."""
        pressed = time.perf_counter()
        for event in self.site.on(name):
            self.cancel([turn for turn in self.turns.values() if turn.event["id"] in event["cancels"]])
            if event["backend_fn"]:
                self.quick(event, [])
        return pressed

    def cancel(self, turns: list[Turn]):
        """What Gradio's script does of events that another cancels, and its client of a job."""
        for turn in turns:
            if not turn.over.is_set():
                body = {"session_hash": self.session, "fn_index": turn.event["id"], "event_id": turn.id}
                self.web.post("cancel", json=body)
                self.turns.pop(turn.id, None)
                turn.end()

    def leave(self) -> float:
        """Close the tab; the moment that was."""
        left, self.sockets = self.sockets, []
        for one in left:
            _shut(one)
        return time.perf_counter()

    def send(self, event: dict, data: list) -> Turn:
        """Join Gradio's queue."""
        turn = Turn(self.site, event)
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": None}
        with self.lock:
            trigger = next((at for at, _ in event["targets"]), None)
            reply = self.web.post("queue/join", json=body | {"trigger_id": trigger})
            if reply.status_code != 200:
                turn.refuse(str(reply.json().get("detail", reply.text)))
                return turn
            turn.id = reply.json()["event_id"]
            self.turns[turn.id] = turn
            if not self.streaming:
                self.streaming = True
                self._listen(f"queue/data?session_hash={self.session}", self._read)
        return turn

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_):
        self.leave()
        self.web.close()

    def _read(self, line: str):
        message = json.loads(line.removeprefix("data: "))
        with self.lock:  # an event's first message may come before the answer to joining
            turn = self.turns.get(message.get("event_id"))
        if turn:
            turn.take(message)
            if turn.over.is_set():
                self.turns.pop(turn.id, None)  # what it showed is its own caller's to keep
        if message["msg"] in ("close_stream", "unexpected_error"):
            with self.lock:
                self.streaming = False
                going = [turn for turn in self.turns.values() if not turn.over.is_set()]
                if going and message["msg"] == "close_stream":
                    self.streaming = True
                    self._listen(f"queue/data?session_hash={self.session}", self._read)
            for turn in going if message["msg"] == "unexpected_error" else ():
                turn.refuse(message["message"])

    def _listen(self, path: str, read: Callable[[str], None]):
        """Read a stream of events in a thread of its own."""
        line = http.client.HTTPConnection(self.site.host, timeout=600)
        line.request("GET", f"{urlsplit(self.site.url).path}/gradio_api/{path}")
        reply = line.getresponse()
        self.sockets.append(line.sock)

        def work():
            try:
                for text in reply:
                    if text.startswith(b"data: {"):
                        read(text.decode().strip())
            except (OSError, http.client.HTTPException, ValueError, AttributeError):
                pass  # the tab was closed
            finally:
                line.close()

        threading.Thread(target=work, name="visitor", daemon=True).start()


def _shut(wire):
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was over


def _classes(props: dict) -> list[str]:
    named = props.get("elem_classes") or []
    return named.split() if isinstance(named, str) else [word for name in named for word in name.split()]


def _id(site: Site, at: int) -> str | None:
    return site.parts[at].get("elem_id")
