"""Tiny random checkpoints of the real classes, one a family: for tests, the parity table and quick benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 48, 8  # pixels of a view and of a patch: 6 x 6 patches
CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # rows and columns of tiles
WIDTH = 64  # of the language model: NF4 packs its weights in blocks of 64
CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}[/INST]"
    "{% else %} {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """What sets a family of checkpoints apart: its language model, whether it tiles the image, its chat template."""

    language: Callable  # its config
    tiled: bool
    chat: str


FAMILIES = {
    "llava-1.5": Family(LlamaConfig, False, CHAT),
    "llava-1.6-vicuna": Family(LlamaConfig, True, "Look closely. " + CHAT),
    "llava-1.6-mistral": Family(partial(MistralConfig, sliding_window=None), True, INST),
}


def write(family: str, folder: Path | str, seed: int = 0):
    """Weights, processor and tokenizer of a random checkpoint, as `longtail.load(folder)` and the Auto classes read it.

    Raises ValueError for an unknown family.
    """
    random_model(config(family), seed).save_pretrained(folder)
    processor(family).save_pretrained(folder)


def write_clip(folder: Path | str, seed: int = 1):
    """A CLIP text tower and visual projection, laid out like CLIP's own checkpoint, in `folder`/clip."""
    clip = Path(folder) / "clip"
    torch.manual_seed(seed)
    CLIPTextModelWithProjection(clip_config()).save_pretrained(clip)
    tokenizer().save_pretrained(clip)
    weights = load_file(clip / "model.safetensors") | {"visual_projection.weight": torch.randn(16, 32)}
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})


def config(
    family: str, tower_layers: int = 5, key_value_heads: int = 2, side: int = SIDE, patch: int = PATCH
) -> LlavaConfig | LlavaNextConfig:
    """The architecture: a CLIP tower of 36 patches and a language model of three layers with grouped queries."""
    if family not in FAMILIES:
        raise ValueError(f"there is no family {family!r}: choose from {', '.join(FAMILIES)}")
    tiled, language = FAMILIES[family].tiled, FAMILIES[family].language
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=tower_layers, num_attention_heads=4,
        image_size=side, patch_size=patch, projection_dim=16,
    )  # fmt: skip
    text = language(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=key_value_heads, vocab_size=300, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    shared = {"vision_config": vision, "text_config": text, "image_token_index": 4, "vision_feature_layer": -2,
              "vision_feature_select_strategy": "default", "image_seq_length": (side // patch) ** 2}  # fmt: skip
    return LlavaNextConfig(**shared, image_grid_pinpoints=tilings(side)) if tiled else LlavaConfig(**shared)


def tilings(side: int) -> list[list[int]]:
    """Height and width of the canvases that tiles of that side may fill."""
    return [[side * rows, side * columns] for rows, columns in CANVASES]


def random_model(config: LlavaConfig | LlavaNextConfig, seed: int = 0):
    """Random weights, scaled up so that answers do not repeat one token and embeddings are not all alike."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(20 if "lm_head" in name else 50 if "embed_tokens" in name else 4)
    ends = model.generation_config
    ends.pad_token_id, ends.bos_token_id, ends.eos_token_id = 0, 1, 2
    return model


def processor(family: str, patch: int = PATCH, side: int = SIDE) -> LlavaProcessor | LlavaNextProcessor:
    """The family's own processor, for views and patches of so many pixels, over a tokenizer of single bytes."""
    tiled, chat = FAMILIES[family].tiled, FAMILIES[family].chat
    sizes, canvases = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}, tilings(side)
    images = (
        LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=canvases) if tiled else CLIPImageProcessorPil(**sizes)
    )
    return (LlavaNextProcessor if tiled else LlavaProcessor)(
        images, tokenizer(), patch_size=patch, vision_feature_select_strategy="default", chat_template=chat,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, behind five special ones."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **names)


def clip_config() -> CLIPTextConfig:
    """A CLIP text tower that fits the vision tower of `config`."""
    return CLIPTextConfig(
        vocab_size=300, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, projection_dim=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
