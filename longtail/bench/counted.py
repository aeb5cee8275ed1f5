"""What a call costs a GPU's host: kernels it launches and times it waits for the device. Counted, not timed."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def count(form: Callable, device: str) -> dict[str, int]:
    """`kernels` and `synchronisations` of one call that is warm; nothing on a CPU, which launches none."""
    if not device.startswith("cuda"):
        return {}
    return {"kernels": kernels(form), "synchronisations": synchronisations(form)}


def kernels(form: Callable) -> int:
    """Kernels, copies and fills of one call; a replayed graph's count too, though one launch started them."""
    form()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        form()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())


def synchronisations(form: Callable) -> int:
    """How often one call makes the host wait for the device, as torch tells; an explicit `synchronize` is not told."""
    form()
    with told() as waits:
        form()
    return len(waits)


@contextmanager
def told():
    """The list of waits that torch warns of inside."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    waits = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
            waits += [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    finally:
        torch.cuda.set_sync_debug_mode(before)
