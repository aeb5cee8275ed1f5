"""The page, served: health, readiness, metrics, headers, uploads in bounds, and an end in order."""

import asyncio
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from . import journal, look, space
from .guard import Guard, Rules
from .policy import SPACES
from .uploads import Uploads

TIDYING = 30.0  # seconds between two looks at the uploads
DELIVERY = 2.0  # seconds for what the last events came to
PATIENCE = 10.0  # seconds that a running answer has when the server ends
log = logging.getLogger("longtail")


class Served:
    """A page on its port. `url` is its address."""

    def __init__(self, blocks, metrics: bool, framing: tuple[str, ...], mcp: bool, share: bool):
        self.blocks, self.host, self.closing = blocks, blocks.host, threading.Event()
        self.journal, self.uploads = self.host.journal, Uploads(Path(get_upload_folder()))
        framing += SPACES if space.place() else ()
        self.rules = Rules(self.journal, self.uploads, framing, mcp, share)
        self.routes = [Route("/healthz", self.healthz), Route("/readyz", self.readyz)]
        if metrics:
            self.routes.append(Route("/metrics", self.metrics))
            self.journal.watch(self.gauges())

    # ---- what it tells

    def unready(self) -> str:
        """Why nobody should be sent here now; nothing where the page is ready."""
        if self.closing.is_set():
            return "the server is shutting down"
        if self.host.llava is None and self.host.name not in (None, "none"):
            return f"the model {self.host.name} is being loaded"
        return self.host.line.stuck()

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def readyz(self, request: Request) -> Response:
        why = self.unready()
        return JSONResponse({"ready": False, "why": why}, 503) if why else JSONResponse({"ready": True})

    async def metrics(self, request: Request) -> Response:
        self.journal.model.info(
            {"name": self.host.name or "none", "device": str(getattr(self.host.llava, "device", ""))}
        )
        return PlainTextResponse(self.journal.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def gauges(self) -> dict:
        """What is read when it is scraped."""
        line, uploads = self.host.line, self.uploads
        read = {
            "ready": ("1 where /readyz says 200", lambda: not self.unready()),
            "waiting": ("Who waits in the line for the model", lambda: line.waiting),
            "running": ("1 while the model works", lambda: line.busy),
            "uploads_bytes": ("Visitors' files held, in bytes", lambda: uploads.held()[0]),
            "uploads_files": ("Visitors' files held", lambda: uploads.held()[1]),
        }
        if torch.cuda.is_available() and space.place() != "zero":
            read["gpu_memory_bytes"] = ("GPU memory held by this process", torch.cuda.memory_reserved)
        return read

    # ---- while it lives

    @asynccontextmanager
    async def living(self, app):
        """The uploads are looked through again and again."""

        async def tidying():
            while True:
                await asyncio.sleep(TIDYING)
                await asyncio.to_thread(self.uploads.tidy)

        task = asyncio.create_task(tidying())
        yield
        task.cancel()

    # ---- how it ends

    def close(self) -> bool:
        """No new work, ten seconds for the answer that runs, then it is stopped. False where it would not stop."""
        self.closing.set()
        line = self.host.line
        line.close()
        if not (quiet := line.drained(PATIENCE)):
            line.stop()
            quiet = line.drained(2.0)
        end = time.monotonic() + DELIVERY
        while self.rules.answering and time.monotonic() < end:
            time.sleep(0.02)
        self.blocks.server.config.timeout_graceful_shutdown = 2
        self.blocks.close(verbose=False)
        return quiet

    def until_told(self):
        """Serve until SIGTERM or SIGINT, then close; a second signal ends the process at once."""
        told = threading.Event()

        def hear(number, frame):
            if told.is_set():
                os._exit(128 + number)
            told.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hear)
        told.wait()
        log.info("shutting down")
        if not self.close():  # a worker that will not stop would hold the process for ever
            log.error("the running work did not stop")
            shutil.rmtree(self.uploads.folder, ignore_errors=True)
            sys.stderr.flush()
            os._exit(0)


def serve(
    blocks, early=None, metrics: bool = True, framing: tuple[str, ...] = (), share: bool = False, **how
) -> Served:
    """Serve a built page; returns at once. `early` hands its port over; `framing`: other sites that may frame the page;
    `how` is for `launch()`: server_name, server_port, root_path, auth, mcp_server, quiet. Raises OSError, no port."""
    served = Served(blocks, metrics, tuple(framing), bool(how.get("mcp_server")), share)
    app = {"middleware": [Middleware(Guard, served.rules)], "routes": served.routes, "lifespan": served.living}
    if early:
        how["server_port"] = early.hand_over()
    blocks.queue(max_size=None, default_concurrency_limit=8, status_update_rate=1)  # the line for the model is bounded
    threads = max(40, blocks.host.line.most + 16)  # Gradio's own line is behind ours: nobody waits there
    blocks.launch(**how, **look.launching(share), app_kwargs=app, max_threads=threads, prevent_thread_lock=True)
    journal.adopt(("uvicorn", "uvicorn.error", "uvicorn.access"))  # their own handlers came with the launch
    served.uploads.keep()
    served.url = blocks.local_url
    return served
