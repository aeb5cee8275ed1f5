"""The port answers before the page is there: alive, not ready, and how far loading is. The standard library alone."""

import argparse
import json
import os
import signal
import socket
import sys
import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>LongTail is starting</title><body style="font-family: sans-serif; margin: 4rem auto; max-width: 40rem">
<h1>LongTail is starting</h1><p role="status">{}</p><p>This page opens by itself.</p>"""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Port(ThreadingHTTPServer):
    """A visitor who does not wait for the answer is no error."""

    def handle_error(self, request, client_address):
        """Nothing is said."""


class Port6(Port):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


class Early:
    """Answers on the page's own port until it is handed over. `phase` is what /readyz says."""

    def __init__(self, host: str, port: int):
        self.phase = "the program is being started"
        self.server = (Port6 if ":" in host else Port)((host, port), Answers)
        self.server.early = self
        self.port = self.server.server_port
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, name="early", daemon=True
        ).start()

    def tell(self, progress):
        """A step of loading, as `loading.Progress` has it."""
        line = progress.line()
        self.phase = f"the model is being loaded: {progress.phase.replace('_', ' ')}" + (f", {line}" if line else "")

    def hand_over(self) -> int:
        """Leave the port; returns it."""
        self.server.shutdown()
        self.server.server_close()
        return self.port


class Answers(BaseHTTPRequestHandler):
    """Three kinds of answers: healthz, readyz, and a page that asks again by itself."""

    timeout = 10

    def do_GET(self):
        path, phase = self.path.partition("?")[0], self.server.early.phase
        if path.endswith("/healthz"):
            self.answer(200, "application/json", json.dumps({"alive": True}))
        elif path.endswith("/readyz"):
            self.answer(503, "application/json", json.dumps({"ready": False, "why": phase}))
        else:
            self.answer(503, "text/html; charset=utf-8", WAITING.format(escape(phase)))

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, kind: str, text: str):
        """One whole answer; the connection ends with it, since the port is about to be handed over."""
        body = text.encode()
        self.send_response_only(status)
        for name, value in HEADERS.items() | {("Content-Type", kind), ("Content-Length", str(len(body)))}:
            self.send_header(name, value)
        self.send_header("Retry-After", "2")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words):
        """Nobody's address is logged."""


def begun(arguments: list[str]) -> Early | None:
    """Answer where that may be. Until the page is served, SIGTERM and SIGINT end the process quietly."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    return answering(arguments)


def answering(arguments: list[str]) -> Early | None:
    """Answer on the port that these flags ask for; None where another program must be asked first: a Space, whose
    platform watches the port, or a port that is taken, which app.py will say."""
    if os.environ.get("SPACE_ID") or os.environ.get("SPACES_ZERO_GPU") or {"-h", "--help"} & set(arguments):
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--host", default=os.environ.get("LONGTAIL_HOST"))
    parser.add_argument("--port", default=os.environ.get("LONGTAIL_PORT"))
    try:
        asked, _ = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit):
        return None  # app.py's own parser has the sentence
    host = (asked.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
    for port in _ports(asked.port):
        try:
            return Early(host, port)
        except (OSError, OverflowError):
            continue
    return None


def _ports(asked: str | None) -> range:
    """The port that was asked for, or those that Gradio would try in turn."""
    if asked:
        return range(int(asked), int(asked) + 1) if asked.isdecimal() else range(0)
    first = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    return range(first, first + int(os.environ.get("GRADIO_NUM_PORTS", "100")))
