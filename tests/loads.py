"""Loads models as a fresh process does, one case after another: JSON in (arguments, what is free), JSON out."""

import json
import shutil
import sys
import time
from types import SimpleNamespace

import longtail
from longtail.models import memory

time.sleep = lambda seconds: None  # between the client's retries
free, usage = memory.free, shutil.disk_usage


def case(asked: dict) -> dict:
    """Why it was refused, or what was loaded; and the progress told."""
    left, room, told = asked.pop("free", None), asked.pop("disk", None), []
    memory.free = free if left is None else lambda device: left
    shutil.disk_usage = usage if room is None else lambda path: SimpleNamespace(free=room)
    try:
        llava = longtail.load(
            **asked, progress=lambda step: told.append([step.phase, step.done, step.total, step.file])
        )
    except ValueError as error:
        return {"error": str(error), "told": told}
    return {"loaded": llava.loaded.record(), "told": told, "layers": len(llava.decoder_layers)}


print(json.dumps([case(asked) for asked in json.loads(sys.argv[1])]))
