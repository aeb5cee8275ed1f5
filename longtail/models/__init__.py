"""Model families and how to load them: a known name, a hub id or a folder."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from . import adapter as lora
from . import memory, sound
from .catalogue import KNOWN, architecture, decoder_linears, needed
from .fetch import LAID_OUT, fetched, read_config
from .llava import Llava, refuse_other_layouts
from .llava_next import LlavaNext
from .loading import Loaded, Progress, Tell, silent
from .pixels import refuse_kind
from .precision import choose, held, options, refuse_shapes

FAMILIES = {"llava": Llava, "llava_next": LlavaNext}  # transformers' model_type -> the room that knows its layout


def load(
    name: str = "tiny",
    dtype: str = "auto",
    quantization: str = "none",
    device: str = "auto",
    *,
    revision: str | None = None,
    adapter: str | None = None,
    attention: str = "sdpa",
    double_quantization: bool = True,
    pixels: str = "exact",
    eager: bool = False,
    progress: Tell | None = None,
) -> Llava:
    """A model ready to answer. `auto`: the GPU where there is one, in bfloat16 (float16 where it has none); else the
    CPU, in float32. `adapter`: a LoRA adapter, folder or hub id. `pixels`: exact, bit for bit as transformers' Pillow
    processors make them, or fast, a few grey levels off (`models.pixels`). `eager`: nothing is ever captured as a CUDA
    graph. `progress` is told each `Progress`.

    Raises ValueError, before a weight is fetched, for whatever is known to fail by then: an unknown name or option, a
    family we do not know, packages or files that are missing, no network, no room on disk or in memory.
    """
    refuse_kind(pixels)
    place, tell = place_of(name), progress or silent
    asked, device = device, _device(device)
    precision = choose(dtype, quantization, device, attention, double_quantization)
    config = read_config(place, revision, tell)
    family = _family(name, config)
    sound.refuse_sizes(config, name)
    with sound.told(f"the model that config.json of {name} describes", LAID_OUT):
        meta = architecture(config)
    refuse_shapes(quantization, decoder_linears(meta), device)
    size = needed(meta, precision)
    device = memory.spread(asked, device, size)
    memory.refuse(short_name(name), config, precision, device, size)
    more = adapter and lora.read(adapter, tell)
    if more:
        lora.refuse(more, meta)
    folder = fetched(place, revision, tell)
    processor = _processor(name, folder)
    before = memory.free(device)
    tell(Progress("weights", 0, size))
    model = _model(name, folder, options(precision, device), device)
    tell(Progress("weights", size, size))
    if more:
        lora.apply(more, model, merge=quantization == "none")
        tell(Progress("adapter", 1, 1, adapter))
    llava = family(model, processor, short_name(name), str(folder), quantization, pixels)
    llava.eager = eager
    with sound.told(f"the chat template or the tokenizer of {name}"):
        llava.text("a question")
    commit = "" if Path(place).is_dir() else folder.name
    llava.loaded = Loaded(commit, adapter or "", held(model), before, memory.free(device))
    return llava


def short_name(name: str) -> str:
    """What tables call the model: a known name stays, a folder or hub id gives its last part."""
    return name if name in KNOWN else Path(name).name


def place_of(name: str) -> str:
    """Hub id or folder of a model. Raises ValueError for a name that is none."""
    if name in KNOWN:
        return KNOWN[name].place
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


def _family(name: str, config) -> type[Llava]:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{name!r} is a {config.model_type!r} model, which is not supported: {', '.join(FAMILIES)} are"
        )
    refuse_other_layouts(config, name)
    return FAMILIES[config.model_type]


def _processor(name: str, folder: Path):
    """Tokenizer and image processor of a folder. Raises ValueError where they cannot be read."""
    with sound.told(f"the tokenizer or the image processor of {name}"):
        processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise ValueError(f"{name} has no processor of tokenizer and images: {LAID_OUT}")
    return processor


def _model(name: str, folder: Path, given: dict, device: str):
    """The weights of a folder on the device. Raises ValueError where the checkpoint lacks some."""
    with sound.told(f"the weights of {name}"):
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, ignore_mismatched_sizes=True, **given
        )
    if wrong := sorted(found["mismatched_keys"]):
        key, has, wanted = wrong[0]
        raise ValueError(
            f"{len(wrong)} of the weights of {name} are not of the shape that its config says, {key} among them "
            f"({list(has)}, not {list(wanted)}): {LAID_OUT}"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights its config asks for, {missing[0]} among them: {LAID_OUT}"
        )
    return model if "device_map" in given else model.to(device)
