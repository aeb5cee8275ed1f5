"""From a training checkpoint to a folder that plain `AutoModelForImageTextToText` and `AutoProcessor` load offline."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import card, examine
from .model import Miniature
from .tokenizer import BOS, EOS, PAD, learn, wrap
from .world import PATCH, SIDE

PROJECTION = "visual_projection.weight"  # OpenAI's name for it, beside the text tower's weights
MEAN, DEVIATION = [0.5] * 3, [64 / 255] * 3  # training saw (byte - 127.5) / 64
CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def export(checkpoint: Path, folder: Path, scenes: int = 0) -> dict:
    """Write the folder whole or not at all, with a card that measures on `scenes` held-out scenes (0: no card).

    An existing export is replaced. -> the checkpoint's progress.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not checkpoint.is_file():
        raise ValueError(
            f"there is no checkpoint at {checkpoint}; `python -m longtail tiny train` writes checkpoint.pt"
        )
    log = checkpoint.parent / "training.jsonl"
    if scenes and not log.is_file():
        raise ValueError(
            f"the card needs the training log and there is none at {log}; --scenes 0 exports without a card"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds something that is not an exported model; name an empty or new folder")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    model = Miniature()
    model.load_state_dict(state["model"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    fresh.chmod(0o755)
    write_model(model.to(torch.bfloat16), fresh)
    if log.exists():
        shutil.copy(log, fresh / log.name)
    if scenes:
        card.write(fresh, measured(model, fresh, scenes) | {"progress": state["progress"]})
    swap(fresh, folder)
    return state["progress"]


def write_model(model: Miniature, folder: Path) -> None:
    llava, core = model.llava, learn()
    ends = llava.generation_config
    ends.bos_token_id, ends.eos_token_id, ends.pad_token_id = BOS, EOS, PAD
    llava.save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=DEVIATION
    )
    LlavaProcessor(
        images,
        wrap(core),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    name_class(folder)
    clip = folder / "clip"
    model.text.save_pretrained(clip)
    weights = load_file(clip / "model.safetensors") | {PROJECTION: model.visual_projection.weight.detach().contiguous()}
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    wrap(core, close=True).save_pretrained(clip)
    name_class(clip)


def measured(model: Miniature, folder: Path, scenes: int) -> dict:
    """Everything that the card reports; also left in the folder as JSON, for programs."""
    few = 16 * max(1, round(scenes / 5 / 16))
    found = {
        "scenes": scenes,
        "table": examine.pruning_table(model, scenes),
        "generate": examine.through_generate(folder, few),
        "curve_scenes": few,
        "curves": examine.curves(model, few),
        "phrases": examine.phrases(model, few),
    }
    (folder / "measurements.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def name_class(folder: Path) -> None:
    """The name that every transformers since 4.40 knows; newer ones write `TokenizersBackend`."""
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))


def visual_projection(folder: str | Path) -> torch.Tensor:
    """CLIP's projection of the vision tower, [shared, width], from an exported folder."""
    return load_file(Path(folder) / "clip" / "model.safetensors")[PROJECTION]


def swap(fresh: Path, folder: Path) -> None:
    """Put the new folder in the old one's place by two renames."""
    aside = fresh.with_name(fresh.name + "-old")
    if folder.exists():
        os.replace(folder, aside)
    os.replace(fresh, folder)
    shutil.rmtree(aside, ignore_errors=True)
