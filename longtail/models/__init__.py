"""Model families and how to load them: a known name, a hub id or a folder."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig

from .llava import Llava
from .llava_next import LlavaNext

TINY = Path(__file__).parents[2] / "assets" / "tiny"
KNOWN = {
    "tiny": str(TINY),
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
}
FAMILIES = {"llava": Llava, "llava_next": LlavaNext}  # transformers' model_type -> the room that knows its layout
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "int8", "int4")


def load(name: str = "tiny", dtype: str = "auto", quantization: str = "none", device: str = "auto") -> Llava:
    """A model ready to answer. `auto`: the GPU where there is one, in bfloat16; else the CPU, in float32.

    Raises ValueError for an unknown name, an absent or incomplete folder, a family we do not know, or an option that
    cannot work here, and OSError where the hub cannot be reached.
    """
    for option, value, allowed in (("dtype", dtype, DTYPES), ("quantization", quantization, QUANTIZATIONS)):
        if value not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
    place = _place(name)
    device = _device(device)
    family = _family(name, place)
    kind = DTYPES[dtype] or (torch.float32 if device == "cpu" else torch.bfloat16)
    return family.from_pretrained(place, short_name(name), kind, quantization, device)


def short_name(name: str) -> str:
    """What tables call the model: a known name stays, a folder or hub id gives its last part."""
    return name if name in KNOWN else Path(name).name


def _place(name: str) -> str:
    if name in KNOWN:
        return KNOWN[name]
    if Path(name).is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return name
    raise ValueError(
        f"there is no model {name!r}: give one of {', '.join(KNOWN)}, a hub id such as llava-hf/llava-1.5-7b-hf, "
        "or a folder that holds config.json"
    )


def _device(device: str) -> str:
    best = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return best
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda") and best == "cpu":
        raise ValueError(f"device {device!r} was asked for, but torch sees no GPU here: use cpu or auto")
    return device


def _family(name: str, place: str) -> type[Llava]:
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise ValueError(f"the folder {place} holds no config.json: give a folder written by save_pretrained")
    try:
        kind = AutoConfig.from_pretrained(place).model_type
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model {name!r} could not be read{offline}: {reason}") from error
    if kind not in FAMILIES:
        raise ValueError(f"{name!r} is a {kind!r} model, which is not supported: {', '.join(FAMILIES)} are")
    return FAMILIES[kind]
