"""What happens here, told once: as a structured log line and as a metric; never a word of an image or a question unless
asked."""

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

FORMS = ("json", "plain")
FRAMES = 6  # of a traceback, the innermost
DONE = ("done", "stopped", "left")  # ends that are no failures
TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WAITED = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
log = logging.getLogger("longtail")


class Journal:
    """Metrics of one process in a registry of its own, and its log. `content`: questions and answers are logged too."""

    def __init__(self, content: bool = False):
        self.content, self.registry = content, CollectorRegistry()
        own = {"registry": self.registry, "namespace": "longtail"}
        self.runs = Counter("runs", "Pieces of work on the model, by how they ended", ["kind", "cause"], **own)
        self.failures = Counter("failures", "Pieces of work that failed or were refused", ["cause"], **own)
        self.requests = Counter("refused_requests", "Requests that were refused before the page", ["status"], **own)
        self.ttft = Histogram("ttft_seconds", "Time to the first token", ["method"], buckets=TTFT, **own)
        self.tpot = Histogram(
            "tpot_seconds", "Time per later token, an answer's median", ["method"], buckets=TPOT, **own
        )
        self.waited = Histogram("waited_seconds", "Time in the line for the model", ["kind"], buckets=WAITED, **own)
        self.worked = Histogram("run_seconds", "Time on the model", ["kind"], buckets=WAITED, **own)
        self.model = Info("model", "The model that answers", **own)
        ProcessCollector(registry=self.registry)  # resident memory, open files, processor time

    def ran(self, kind: str, cause: str, waited: float, seconds: float, records: Sequence[dict] = ()):
        """A piece of work on the model ended: `kind` as run or load, `cause` as done or memory; seconds in the line and
        on the model; `records` as of `Answer.record()`."""
        self.runs.labels(kind, cause).inc()
        if cause not in DONE:
            self.failures.labels(cause).inc()
        self.waited.labels(kind).observe(waited)
        self.worked.labels(kind).observe(seconds)
        for record in records:
            self._timed(record)
        told = {"kind": kind, "cause": cause, "waited": round(waited, 4), "seconds": round(seconds, 4)}
        told |= {"answers": [self._told(record) for record in records]} if records else {}
        log.log(logging.INFO if cause in DONE else logging.WARNING, "%s: %s", kind, cause, extra={"told": told})

    def refused(self, status: int, method: str, route: str, why: str):
        """A request was refused at the door: counted, a failure of ours logged too; `route` is a pattern of ours."""
        self.requests.labels(str(status)).inc()
        if status == 500:
            log.error(why, extra={"told": {"method": method, "route": route}})

    def watch(self, gauges: dict[str, tuple[str, Callable[[], float]]]):
        """Values that are read when they are scraped: name -> (what it is, how it is read)."""
        for name, (what, read) in gauges.items():
            Gauge(name, what, namespace="longtail", registry=self.registry).set_function(read)

    def page(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def _timed(self, record: dict):
        seconds, method = record["seconds"], record["method"]
        if record.get("shared"):
            return  # a preview takes no times
        if seconds["first_token"]:
            self.ttft.labels(method).observe(seconds["first_token"])
        if seconds["per_token"]:
            self.tpot.labels(method).observe(seconds["per_token"])

    def _told(self, record: dict) -> dict:
        tokens = {name: record["tokens"][name] for name in ("visual", "generated")}
        told = {"method": record["method"], **tokens, "ttft": round(record["seconds"]["first_token"], 4)}
        return told | ({name: record[name] for name in ("question", "answer")} if self.content else {})


# ---- the log


class Json(logging.Formatter):
    """A record as one line of JSON. Of an exception its type and its place; its words only where `content` is on, since
    they may quote what a visitor sent."""

    def __init__(self, content: bool):
        super().__init__()
        self.content = content

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "told", {})
        if record.exc_info and record.exc_info[1]:
            line["error"] = outline(record.exc_info[1], self.content)
        return json.dumps(line, ensure_ascii=False, default=str)


class Plain(logging.Formatter):
    """The same for a person: time, level, message, details."""

    def __init__(self, content: bool):
        super().__init__()
        self.content = content

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{when} {record.levelname.lower()} {record.getMessage()}"
        line += "".join(f" {name}={value}" for name, value in getattr(record, "told", {}).items())
        if record.exc_info and record.exc_info[1]:
            error = outline(record.exc_info[1], self.content)
            line += f"\n{error['type']}: {error['says']}\n  " + "\n  ".join(error["at"])
        return line


def outline(error: BaseException, content: bool) -> dict:
    """An exception as plain values: type, words (or that they are withheld), where it came through, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"type": type(error).__name__, "says": str(error) if content else "withheld", "at": at}


def listen(form: str, content: bool):
    """All that this process logs, warns of or lets fall goes to stderr in that form, the libraries' own lines too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json(content) if form == "json" else Plain(content))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    threading.excepthook = _fallen
    adopt(("uvicorn", "uvicorn.error", "uvicorn.access", "transformers", "huggingface_hub", "httpx"))


class Stream:
    """What is printed line by line, as loading does, is logged."""

    def write(self, text: str):
        """A line, or the end of one."""
        if text.strip():
            log.info(text.strip())

    def flush(self):
        """Nothing waits here."""


def adopt(names: Iterable[str]):
    """Loggers that brought handlers of their own hand their records to ours; addresses are in none below a warning."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def _fallen(fallen):
    if fallen.exc_type is not SystemExit:
        log.error("a thread failed", exc_info=(fallen.exc_type, fallen.exc_value, fallen.exc_traceback))
