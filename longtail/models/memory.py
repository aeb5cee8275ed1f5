"""What is free on a device, the refusal of what cannot fit before anything of it is fetched, and what to do when memory
runs out all the same."""

import gc
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from .catalogue import KNOWN, Known, architecture, decoder_linears, weights
from .loading import gib
from .precision import Precision, best, runs

GROUPS = (  # a container's limit, what it uses, what this is made of: cgroup v2, v1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")  # in RuntimeErrors of torch


class OutOfMemory(MemoryError):
    """Memory ran out while the model worked; the sentence says where, and what to ask less of."""


def spared(device: torch.device, work: Callable, *arguments, advice: Callable[[], str]):
    """What comes of the work. Where memory runs out in it, what it made is let go of, and OutOfMemory says `advice()`.

    The error of the allocator is left behind first: its traceback holds every tensor of the frames it came through.
    """
    try:
        return work(*arguments)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        sentence = advice()
    give_back(device)
    raise OutOfMemory(sentence)


def exhausted(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's own, a GPU's, or that of torch's allocator on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTED)


def give_back(device: torch.device | None = None) -> None:
    """Free what nothing refers to; a GPU's cached blocks go back to the system."""
    gc.collect()
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        torch.cuda.empty_cache()


def free(device: str) -> int | None:
    """Bytes free on the CPU or a GPU, on all GPUs for auto; None where the system does not say."""
    if device == "auto":
        return sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    left = [_available(), *(_left_in_group(*files) for files in GROUPS)]
    return min((count for count in left if count is not None), default=None)


def spread(asked: str, device: str, needed: int) -> str:
    """Where the model goes: `device`; or auto, all GPUs, where it was not named and is too small alone."""
    several = asked == "auto" and device == "cuda" and torch.cuda.device_count() > 1
    return "auto" if several and free("cuda") < needed <= free("auto") else device


def refuse(name: str, config: PreTrainedConfig, precision: Precision, device: str, needed: int) -> None:
    """ValueError where the weights alone exceed what is free, with the arithmetic and what would fit instead."""
    left = free(device)
    if left is None or needed <= left:
        return
    where = {"auto": "all GPUs together", "cpu": "the CPU"}.get(device, device)
    sizes = {flag: weights(config, other) for flag, other in lighter(config, precision, device)}
    sizes |= {f"--model {known.name}": size for known, size in smaller(needed, precision, left)[:1]}
    small = [f"{flag} ({gib(size)} GiB)" for flag, size in sizes.items() if size <= left]
    tries = f"try {', '.join(small)}" if small else "free some, or use a machine with more"
    raise ValueError(
        f"{name} in {precision.words} needs {gib(needed)} GiB of weights (arithmetic; answering takes more), "
        f"{gib(left)} GiB are free on {where}: {tries}"
    )


def lighter(config: PreTrainedConfig, precision: Precision, device: str) -> list[tuple[str, Precision]]:
    """Flags under which the same model takes fewer bytes and can run on this device."""
    half = torch.bfloat16 if device == "cpu" else best(device)
    kinds = {"none": ("int8", "int4"), "int8": ("int4",), "int4": ()}[precision.quantization]
    others = [(f"--dtype {str(half).removeprefix('torch.')}", replace(precision, dtype=half))]
    others = others if precision.dtype.itemsize > half.itemsize else []
    able = [kind for kind in kinds if runs(kind, decoder_linears(architecture(config)), device)]
    return others + [(f"--quantization {kind}", replace(precision, quantization=kind)) for kind in able]


def smaller(needed: int, precision: Precision, left: int) -> list[tuple[Known, int]]:
    """Known models whose weights are fewer bytes and fit, with these bytes, the largest first."""
    sizes = [(known, weights(known.config(), precision)) for known in KNOWN.values()]
    return sorted((pair for pair in sizes if pair[1] <= left and pair[1] < needed), key=lambda pair: -pair[1])


def _available() -> int | None:
    """Memory this machine could give without swapping."""
    table = Path("/proc/meminfo")
    if table.is_file():
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", table.read_text())[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def _left_in_group(limit: str, usage: str, stat: str) -> int | None:
    """Memory left of a container's limit; the file cache it holds counts as left."""
    if not Path(limit).is_file() or not (most := Path(limit).read_text().strip()).isdecimal():
        return None  # no container, or the word max
    cache = re.search(r"^(?:total_)?inactive_file (\d+)", Path(stat).read_text(), re.M)
    return int(most) - int(Path(usage).read_text()) + (int(cache[1]) if cache else 0)
