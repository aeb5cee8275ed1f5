"""Whether a model's folder is what it says: plain JSON, possible sizes, whole weights. Looked at before it is loaded.

Nothing here runs code of the folder, unpickles, or believes a size: what is wrong is one ValueError with the reason.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ..given import number, shown

SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.json"),
)
LARGEST = 10_000_000  # bytes of such a file
AGAIN = "download it again"
MOST = {  # of each, far above any LLaVA
    "hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 256, "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10, "vocab_size": 2**22, "max_position_embeddings": 2**24, "image_size": 2**12,
    "patch_size": 2**8,
}  # fmt: skip


@contextmanager
def told(what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Whatever a library raises about `what` as one ValueError with its first words."""
    try:
        yield
    except Exception as error:  # each has its own: JSON, Rust, Jinja, validators, endless nesting
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{what} cannot be used ({words}): {remedy}") from error


def settings(file: Path, where: str) -> dict:
    """The JSON object of a small file. Raises ValueError for anything else, and where it asks for code of its own."""
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{where} has a {file.name} of {file.stat().st_size:,} bytes, which no model has: {AGAIN}")
    with told(f"{file.name} of {where}"):
        said = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise ValueError(f"{file.name} of {where} holds no JSON object, but {shown(said)}: {AGAIN}")
    if said.get("auto_map"):
        raise ValueError(
            f"{file.name} of {where} asks for code of the repository to be run ({shown(said['auto_map'])}), which is "
            "never done: take a checkpoint that transformers reads by itself, such as those of llava-hf"
        )
    return said


def refuse_settings(folder: Path, where: str) -> None:
    """ValueError where a small file of a model is not what it should be."""
    for name in SETTINGS:
        if (folder / name).is_file():
            settings(folder / name, where)


def refuse_sizes(config: PreTrainedConfig, where: str) -> None:
    """ValueError where a config's sizes describe no model, or one that nobody could build."""
    text, vision = config.get_text_config(), config.vision_config
    for part, of in (("text_config", text), ("vision_config", vision)):
        for name, most in MOST.items():
            if hasattr(of, name):
                number(f"{part}.{name} of {where}", getattr(of, name), 1, most, whole=True)
        if of.hidden_size % of.num_attention_heads and not getattr(of, "head_dim", None):
            raise ValueError(f"{part} of {where} has {of.hidden_size} channels for {of.num_attention_heads} heads")
    if text.num_attention_heads % text.num_key_value_heads:
        heads = f"{text.num_attention_heads} heads for {text.num_key_value_heads} of keys and values"
        raise ValueError(f"text_config of {where} has {heads}: one number must be a multiple of the other")
    number(f"image_token_index of {where}", config.image_token_id, 0, text.vocab_size - 1, whole=True)
    number(f"vision_config.patch_size of {where}", vision.patch_size, 1, vision.image_size, whole=True)
    layers = vision.num_hidden_layers
    number(f"vision_feature_layer of {where}", config.vision_feature_layer, -layers - 1, layers, whole=True)


def refuse_shards(folder: Path, index: str, where: str) -> list[str]:
    """The weight files that an index names. ValueError where it is none, or they are elsewhere or missing."""
    told_of = settings(folder / index, where).get("weight_map")
    names = list(told_of.values()) if isinstance(told_of, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{index} of {where} names no weight files: {AGAIN}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} of {where} names {shown(name)}, and weights are read from .safetensors files of the folder "
                "itself alone: take another copy of the model"
            )
    missing = [name for name in sorted(set(names)) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of the {len(set(names))} weight files that {index} names: "
            f"{', '.join(missing[:3])}{' and more' * (len(missing) > 3)}; copy or download them again"
        )
    return sorted(set(names))


def refuse_weights(file: Path, where: str) -> None:
    """ValueError where a safetensors file is damaged or cut short: its header must account for every byte."""
    try:
        with safe_open(file, "pt"):
            return
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file.name} of {where} is damaged, or its download broke off ({' '.join(str(error).split())}): {AGAIN}"
        ) from error
