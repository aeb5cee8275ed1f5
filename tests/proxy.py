"""A small reverse proxy that serves a page under a path and takes that path off, as nginx does in the README."""

import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PER_HOP = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def proxied(address: str, prefix: str):
    """The address under which the page at `address` is served with the path `prefix`; nothing else is there."""
    behind = urlsplit(address)

    class Handler(BaseHTTPRequestHandler):
        def forward(self):
            if not self.path.startswith(f"{prefix}/"):  # the icon is what a browser asks any host for, by itself
                return self.send_error(204 if self.path == "/favicon.ico" else 404)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in PER_HOP}
            headers |= {"X-Forwarded-Host": self.headers["host"], "X-Forwarded-Proto": "http"}
            upstream = HTTPConnection(behind.hostname, behind.port, timeout=60)
            upstream.request(self.command, self.path.removeprefix(prefix), body, headers)
            answer = upstream.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in PER_HOP:
                    self.send_header(name, value)
            self.end_headers()
            while part := answer.read1():
                self.wfile.write(part)
                self.wfile.flush()  # answers stream
            upstream.close()

        do_GET = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *words):
            pass

        def handle(self):
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the browser went

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}/"
    finally:
        server.shutdown()
        server.server_close()
