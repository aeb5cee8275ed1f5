"""A hub on this machine: model info with sizes, files with etags, refusals as the real one words them."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


@contextmanager
def hub(repositories: dict[str, Path], gated: tuple[str, ...] = ()):
    """Serve folders as repositories -> (address, log of "METHOD path"); whatever is in `gated` asks for terms."""
    log = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(True)

        def do_HEAD(self):
            self.reply(False)

        def log_message(self, *arguments):
            pass

        def reply(self, body):
            path = self.path.split("?")[0].strip("/")
            log.append(f"{self.command} {path}")
            status, headers, content = answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    def answer(path: str):
        parts = path.removeprefix("api/models/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in gated:
            return refused(403, "GatedRepo")
        if name not in repositories:
            return refused(404, "RepoNotFound")
        revision = rest[1] if rest else "main"
        if revision not in ("main", COMMIT):
            return refused(404, "RevisionNotFound")
        folder = repositories[name]
        if path.startswith("api/models/"):
            files = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size}
                     for f in folder.rglob("*") if f.is_file()]  # fmt: skip
            told = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": files}
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return refused(404, "EntryNotFound")
        content = file.read_bytes()
        return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content

    def refused(status: int, code: str):
        return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
