"""A LoRA adapter on a model, through peft: merged into plain weights, beside quantised ones."""

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from .fetch import files_of, from_hub
from .loading import Progress, Tell

CONFIG, LORA, BESIDE = "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.safetensors"
RENAMED = (  # peft's prefix; the layout of older transformers; LLaVA's own layout
    (r"^base_model\.model\.", ""),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"model.language_model.\1."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.vision_tower\.vision_tower\.", "model.vision_tower."),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
)
PART = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk. Names are those of the model's modules, whatever layout the file was written in."""

    place: str
    config: dict
    lora: dict[str, dict[str, tuple[str, tuple]]]  # module -> lora_A and lora_B: key in the file, shape
    whole: dict[str, tuple[Path, str, tuple]]  # parameter -> what replaces it: file, key, shape
    folder: Path


def read(place: str, tell: Tell) -> Adapter:
    """The adapter of a folder or hub id, fetched and looked over; no weight is loaded yet.

    Raises ValueError where peft is missing, a file is missing or pickled, or it is no LoRA adapter.
    """
    if not find_spec("peft"):
        raise ValueError("an adapter needs one package more: pip install peft")
    tell(Progress("adapter", 0, 1, place))
    folder = Path(place)
    if folder.is_dir():
        wanted(files_of(folder), place)
    elif place.count("/") == 1 and not place.startswith((".", "/", "~")):
        folder = from_hub(place, None, tell, wanted)
    else:
        raise ValueError(f"there is no adapter {place!r}: give a hub id, or a folder that holds {CONFIG} and {LORA}")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise ValueError(f"the adapter {place} is of the kind {kind}: only LoRA is supported, merge it elsewhere first")
    lora, whole = {}, {}
    for file in filter(Path.is_file, (folder / LORA, folder / BESIDE)):
        for key, shape in _shapes(file).items():
            if part := PART.fullmatch(name := renamed(key)):
                lora.setdefault(part[1], {})[part[2]] = key, shape
            else:
                whole[name] = file, key, shape
    return Adapter(place, config, lora, whole, folder)


def wanted(names: list[str], where: str) -> list[str]:
    """The files of an adapter; ValueError where one is lacking or pickled."""
    for file in (LORA, BESIDE):
        pickled = str(Path(file).with_suffix(".bin"))
        if file not in names and pickled in names:
            raise ValueError(
                f"{where} holds {pickled}, which is pickled and may run code when opened: convert it with "
                f"safetensors.torch.save_file(torch.load({pickled!r}, weights_only=True), {file!r})"
            )
    for file in (CONFIG, LORA):
        if file not in names:
            raise ValueError(f"the adapter {where} has no {file}: give one written by peft's save_pretrained")
    return [name for name in (CONFIG, LORA, BESIDE) if name in names]


def refuse(adapter: Adapter, model: nn.Module) -> None:
    """ValueError where the adapter does not fit this architecture (meta device will do), with the keys that do not."""
    modules, parameters, wrong = dict(model.named_modules()), dict(model.named_parameters()), []
    for name, parts in adapter.lora.items():
        layer, shapes = modules.get(name), {part: shape for part, (_, shape) in parts.items()}
        rank = shapes.get("lora_A", (0,))[0]
        fits = isinstance(layer, nn.Linear) and shapes == {
            "lora_A": (rank, layer.in_features),
            "lora_B": (layer.out_features, rank),
        }
        wrong += [] if fits else [key for key, _ in parts.values()]
    for name, (_, key, shape) in adapter.whole.items():
        wrong += [] if name in parameters and tuple(parameters[name].shape) == shape else [key]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"the adapter {adapter.place} does not fit the model: {', '.join(wrong[:3])}{more} have no weight of that "
            "name and shape; take the base model it was trained on"
        )


def apply(adapter: Adapter, model: nn.Module, merge: bool) -> None:
    """Put the adapter on the model, in place: `merge` makes W + scale B A of plain weights; else B A stands beside."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    asked = adapter.config
    config = LoraConfig(
        r=asked["r"],
        lora_alpha=asked["lora_alpha"],
        use_rslora=asked.get("use_rslora", False),
        target_modules=list(adapter.lora),
        rank_pattern={name: parts["lora_A"][1][0] for name, parts in adapter.lora.items()},
        alpha_pattern={renamed(name): alpha for name, alpha in (asked.get("alpha_pattern") or {}).items()},
        inference_mode=True,
    )
    tuner = LoraModel(model, config, "default")
    pairs = [
        (f"{name}.{part}.default.weight", key)
        for name, parts in adapter.lora.items()
        for part, (key, _) in parts.items()
    ]
    _copy(model, adapter.folder / LORA, pairs)
    if merge:
        tuner.merge_and_unload()
    for file in {file for file, _, _ in adapter.whole.values()}:
        _copy(model, file, [(name, key) for name, (other, key, _) in adapter.whole.items() if other == file])


def renamed(key: str) -> str:
    """A name in an adapter's file as transformers calls it now."""
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key


def _shapes(file: Path) -> dict[str, tuple]:
    """Keys of a safetensors file and their shapes, by its header."""
    with safe_open(file, "pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}


@torch.no_grad()
def _copy(model: nn.Module, file: Path, pairs: list[tuple[str, str]]) -> None:
    """Weights of a file into parameters, (parameter, key) each."""
    parameters = dict(model.named_parameters())
    with safe_open(file, "pt") as tensors:
        for name, key in pairs:
            if not parameters[name].is_floating_point():
                raise ValueError(f"the adapter's {key} replaces a quantised weight: load with quantization none")
            parameters[name].copy_(tensors.get_tensor(key))
