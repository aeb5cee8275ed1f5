"""The door of the page, as pure ASGI: an allow-list of routes, bodies within bounds, and a sentence where Gradio would
fail."""

import asyncio
import json
import logging
import re
from dataclasses import dataclass, field

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from . import policy
from .journal import Journal
from .uploads import Uploads

UPLOAD = 20 * 2**20  # bytes of one file
WHOLE = UPLOAD + 2**20  # an upload with what frames it
ASKED = UPLOAD * 4 // 3 + 2**20  # the same file as a data: address in JSON
SMALL = 2**16
VALUES = 20_000  # commas and brackets of a JSON body: parsed, 27 MB of empty lists would take more than a gigabyte

PAGE = (  # method, route, most bytes of a body: what the page, its API's documentation and its clients ask for
    ("GET HEAD", r"/", 0),
    ("GET", r"/config/?|/theme\.css|/robots\.txt|/manifest\.json|/favicon\.ico|/logout", 0),
    ("GET HEAD", r"/(static|assets)/.+", 0),
    ("GET HEAD", r"/healthz|/readyz|/metrics", 0),
    ("POST", r"/login/?", SMALL),
    ("GET", r"/gradio_api/(info/?|app_id|startup-events|theme\.css|queue/data|upload_progress)", 0),
    ("GET", r"/gradio_api/heartbeat/[^/]+", 0),
    ("GET", r"/gradio_api/call/(v2/)?[^/]+/[^/]+", 0),
    ("GET HEAD", r"/gradio_api/file=(?!\w+:).+", 0),  # a path; an address would be fetched for anybody
    ("POST", r"/gradio_api/upload", WHOLE),
    ("POST", r"/gradio_api/(cancel|reset/?)", SMALL),
    ("POST", r"/gradio_api/(queue/join|(run|api|call|call/v2)/[^/]+/?)", ASKED),
)
MCP = (("GET POST DELETE", r"/gradio_api/mcp(/.*)?", ASKED),)
ANSWERS = re.compile(r"/gradio_api/(queue/data|call/.+|run/.+)")

NAMING = ("host", "x-forwarded-host")  # what Gradio makes the page's addresses of
HOST = re.compile(r"((^|, *)(\[[\da-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?)*")
NO_REQUEST = "This is no request that the page or its API makes: /gradio_api/info says what they take."
NO_EVENT = "What was sent does not fit this page: reload it and try again."
FAILED = (422, 500)  # of Gradio: what is no request (in words that quote all of it), and any other failure
QUOTED = 600  # characters of a sentence that is not ours
BROKEN = "The server failed; its log has the cause. Try again."
log = logging.getLogger("longtail")


@dataclass(frozen=True)
class Rules:
    """What the door knows. `framing`: sites that may frame the page; `mcp`, `shared`: what is served beside it;
    `answering`: the visits that wait for what their events come to."""

    journal: Journal
    uploads: Uploads
    framing: tuple[str, ...] = ()
    mcp: bool = False
    shared: bool = False
    answering: set["Visit"] = field(default_factory=set)

    def route(self, method: str, path: str) -> tuple[str, int] | None:
        """The pattern that lets this request in, and the most bytes it may bring; None where there is none."""
        for methods, pattern, most in PAGE + (MCP if self.mcp else ()):
            if method in methods.split() and re.fullmatch(pattern, path, re.DOTALL):
                return pattern, most
        return None


class Guard:
    """ASGI middleware around Gradio's routes."""

    def __init__(self, app, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(self.rules, scope, receive, send)
        if refusal := await visit.refusal():
            await visit.refuse(*refusal)
            return
        if ANSWERS.fullmatch(visit.path):
            self.rules.answering.add(visit)
        try:
            await self.app(scope, visit.read, visit.write)
        except Exception as error:
            await visit.fell(error)
        finally:
            self.rules.answering.discard(visit)


@dataclass(eq=False)
class Visit:
    """One request on its way in, its response on its way out."""

    rules: Rules
    scope: dict
    receive: object
    send: object
    read_bytes: int = 0
    read_values: int = 0
    started: bool = False
    over: bool = False  # more was sent than may be
    held: dict | None = None  # the start of a response whose body is read before it is sent
    body: bytearray = field(default_factory=bytearray)

    def __post_init__(self):
        self.headers, path = Headers(scope=self.scope), self.scope["path"]
        root = self.scope.get("root_path", "")
        self.path = path[len(root) :] if root and path.startswith(root + "/") else path
        self.route, self.most = self.rules.route(self.scope["method"], self.path) or ("", 0)
        if self.path.startswith(policy.FILE):  # whole files alone: a part is answered with the headers of its request
            self.scope["headers"] = [pair for pair in self.scope["headers"] if pair[0] != b"range"]

    # ---- in

    async def refusal(self) -> tuple[int, str] | None:
        """Why this request is not let in: status and sentence."""
        if not self.route:
            return 404, "There is nothing here."
        if self.foreign():
            return 403, "Another site may not use this page for its visitors."
        length = self.headers.get("content-length", "0")
        if not (length.isdecimal() and all(HOST.fullmatch(self.headers.get(name, "")) for name in NAMING)):
            return 400, NO_REQUEST
        if int(length) > self.most:
            return 413, self.too_large()
        if self.path == "/gradio_api/upload":
            size = self.most if "transfer-encoding" in self.headers else int(length)
            if not await asyncio.to_thread(self.rules.uploads.room, size):
                return 503, "The server has no room for files at the moment: try again in a minute."
        return None

    def foreign(self) -> bool:
        """Whether a script of another site sent this; a link from there, followed by a person, is welcome."""
        site, origin = self.headers.get("sec-fetch-site"), self.headers.get("origin")
        if self.headers.get("sec-fetch-mode") == "navigate" and self.scope["method"] == "GET":
            return False
        if site:
            return site == "cross-site"
        hosts = {_named(self.headers.get(name, "")) for name in NAMING} - {""}
        return origin is not None and _named(origin.partition("://")[2]) not in hosts

    def too_large(self) -> str:
        if self.path == "/gradio_api/upload":
            return f"The file is too large: at most {UPLOAD // 2**20} MB are taken. Make it smaller and try again."
        return f"The request is too large: at most {self.most:,} bytes and {VALUES:,} values are taken here."

    async def read(self) -> dict:
        """The next piece of the body, counted: past a bound there is no more of it."""
        message = await self.receive()
        if message["type"] == "http.request":
            piece = message.get("body", b"")
            self.read_bytes += len(piece)
            if self.most == ASKED:
                self.read_values += sum(map(piece.count, (b",", b"[", b"{")))
            if self.read_bytes > self.most or self.read_values > VALUES:
                self.over = True
                raise Refused
        return message

    # ---- out

    async def write(self, message: dict):
        """A piece of the response, with our headers; pages and failures are read before they are sent."""
        if message["type"] == "http.response.start":
            policy.dress(MutableHeaders(scope=message), self.path)
            failed = message["status"] in FAILED or (self.over and not self.started)
            if failed or MutableHeaders(scope=message).get("content-type", "").startswith("text/html"):
                self.held = message
            else:
                self.started = True
                await self.send(message)
        elif self.held is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self.release()

    async def release(self):
        """Send what was held: a page with its policy, a failure in a sentence."""
        start, self.held = self.held, None
        if start["status"] in FAILED or self.over:
            await self.refuse(*self.failure())
            return
        allowed = policy.of(bytes(self.body), self.rules.framing, self.rules.shared)
        MutableHeaders(scope=start)["Content-Security-Policy"] = allowed
        self.started = True
        await self.send(start)
        await self.send({"type": "http.response.body", "body": bytes(self.body)})

    def failure(self) -> tuple[int, str]:
        """Status and sentence where Gradio fails: what we said ourselves, or that the request cannot be used."""
        if self.over:
            return 413, self.too_large()
        try:
            said = json.loads(bytes(self.body)).get("error")
        except (ValueError, AttributeError):
            said = None
        if self.scope.get(FAULT):
            return 500, BROKEN
        return (422, said) if isinstance(said, str) else (400, NO_REQUEST)

    async def fell(self, error: Exception):
        """An exception on the way: of the input where a body was read, of ours otherwise."""
        if isinstance(error, ClientDisconnect):
            return
        if self.over and not self.started:
            await self.refuse(413, self.too_large())
        elif self.started:
            log.debug("a response ended early", exc_info=error)
            await self.send({"type": "http.response.body", "body": b""})
        else:
            ours = self.scope["method"] != "POST" or isinstance(error, (OSError, MemoryError))
            log.log(logging.ERROR if ours else logging.DEBUG, "a request failed", exc_info=error)
            await self.refuse(*((500, BROKEN) if ours else (400, NO_REQUEST)))

    async def refuse(self, status: int, why: str):
        """A response of ours: a sentence, as the page's script reads it."""
        self.rules.journal.refused(status, self.scope["method"], self.route, why)
        plain = self.path == "/gradio_api/upload"  # shown as it comes
        body = why.encode() if plain else json.dumps({"error": why, "detail": why}).encode("utf-8", "replace")
        kind = b"text/plain; charset=utf-8" if plain else b"application/json"
        pairs = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        start = {"type": "http.response.start", "status": status, "headers": pairs}
        if status in (413, 503):
            pairs.append((b"connection", b"close"))
        policy.dress(MutableHeaders(scope=start), self.path)
        self.started = True
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body if self.scope["method"] != "HEAD" else b""})


class Refused(Exception):
    """More was sent than may be."""


def _named(host: str) -> str:
    """A host without its port."""
    return re.sub(r":\d+$", "", host)


# ---- errors of events

FAULT = "longtail.fault"  # set in a request's scope: the server's failure, not its visitor's


def told(error: Exception, request) -> gr.Error:
    """What Gradio is handed instead of an error of an event: a sentence. Its traceback on the terminal would quote what
    was sent; the log has type and place."""
    if isinstance(error, gr.Error):
        error.print_exception = False
        words = str(error.message)  # Gradio's own quote what was sent, all of it
        error.message = words.encode("utf-8", "replace").decode() if len(words) <= QUOTED else NO_EVENT
        return error
    ours = isinstance(error, (OSError, MemoryError)) and not isinstance(error, (FileNotFoundError, PermissionError))
    scope = getattr(getattr(request, "request", None), "scope", None)
    if ours and scope is not None:
        scope[FAULT] = True
    log.log(logging.ERROR if ours else logging.WARNING, "an event failed", exc_info=error)
    return gr.Error(BROKEN if ours else NO_EVENT, print_exception=False)
