"""The models we know by name: where they are, how they are built, what their weights need by arithmetic."""

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from .clip import CHECKPOINTS
from .precision import Precision

TINY = Path(__file__).parents[2] / "assets" / "tiny"
TOWER = {  # CLIP ViT-L/14 at 336 px
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
VICUNA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "pad_token_id": 32001,
}  # fmt: skip
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
MISTRAL_7B = VICUNA_7B | {
    "model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None,
}  # fmt: skip
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # height, width of LLaVA-1.6's canvases
PRECISIONS = {  # of the table: a quantised model's other weights are in bfloat16
    "float32": Precision(torch.float32),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
    "int8": Precision(torch.bfloat16, "int8"),
    "int4": Precision(torch.bfloat16, "int4"),
}


@dataclass(frozen=True)
class Known:
    """A model by its short name. `family` is transformers' model_type, `text` the language model's configuration."""

    name: str
    hub: str  # hub id; "" for the model that is bundled
    family: str
    clip: str  # whose text tower the text-guided methods read
    text: dict = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """Hub id or folder."""
        return self.hub or str(TINY)

    def config(self) -> PreTrainedConfig:
        """The whole architecture, without a network."""
        if not self.hub:
            return AutoConfig.from_pretrained(TINY)
        more = {"image_grid_pinpoints": PINPOINTS} if self.family == "llava_next" else {}
        return AutoConfig.for_model(
            self.family, vision_config=TOWER, text_config=self.text, image_token_index=32000, image_seq_length=576,
            vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False, **more,
        )  # fmt: skip

    def record(self) -> dict:
        """Plain JSON values: parameters counted, bytes by arithmetic."""
        config = self.config()
        model, (views, tokens) = architecture(config), most_tokens(config)
        return {
            "name": self.name,
            "place": self.hub or "bundled",
            "family": self.family,
            "clip": self.clip,
            "parameters": counted(model),
            "bytes_by_arithmetic": {name: needed(model, precision) for name, precision in PRECISIONS.items()},
            "views": views,
            "most_visual_tokens": tokens,
        }


VIT_L = CHECKPOINTS[336, 14, 1024, 24]
KNOWN = {
    known.name: known
    for known in (
        Known("tiny", "", "llava", "bundled"),
        Known("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "llava", VIT_L, VICUNA_7B),
        Known("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "llava", VIT_L, VICUNA_13B),
        Known("llava-1.6-vicuna-7b", "llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next", VIT_L, VICUNA_7B),
        Known("llava-1.6-vicuna-13b", "llava-hf/llava-v1.6-vicuna-13b-hf", "llava_next", VIT_L, VICUNA_13B),
        Known("llava-1.6-mistral-7b", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", VIT_L, MISTRAL_7B),
    )
}


def architecture(config: PreTrainedConfig) -> nn.Module:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def counted(model: nn.Module) -> int:
    """Parameters of a model, of `architecture` as well."""
    return sum(weight.numel() for weight in model.parameters())


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that quantisation takes: the linear ones of the decoder layers, by their full names."""
    inside = "model.language_model.layers."
    return {n: layer for n, layer in model.named_modules() if n.startswith(inside) and isinstance(layer, nn.Linear)}


def weights(config: PreTrainedConfig, precision: Precision) -> int:
    """Bytes that the weights of a model of this config need, by arithmetic: nothing is loaded."""
    return needed(architecture(config), precision)


def needed(model: nn.Module, precision: Precision) -> int:
    """The same of an architecture that is there already.

    Tower, projector, embeddings, lm_head and norms are held in `precision.dtype`, whatever the quantisation.
    """
    taken = [] if precision.quantization == "none" else [layer.weight for layer in decoder_linears(model).values()]
    rest = (counted(model) - sum(weight.numel() for weight in taken)) * precision.dtype.itemsize
    count = {"int8": _int8, "int4": _nf4_nested if precision.double else _nf4}.get(precision.quantization)
    return rest + sum(count(*weight.shape) for weight in taken)


def _int8(rows: int, columns: int) -> int:
    """One byte a weight and one float32 scale a row."""
    return rows * columns + 4 * rows


def _nf4(rows: int, columns: int) -> int:
    """Half a byte a weight, a float32 scale for 64 weights, the code's 16 values: 4.5 bits a weight."""
    return ceil(rows * columns / 2) + 4 * ceil(rows * columns / 64) + 4 * 16


def _nf4_nested(rows: int, columns: int) -> int:
    """Those scales quantised again: a byte each, a float32 scale for 256 of them, their code's 256 values and one
    offset: 4 + 8/64 + 32/(64*256) = 4.127 bits a weight."""
    scales = ceil(rows * columns / 64)
    return ceil(rows * columns / 2) + 4 * 16 + scales + 4 * ceil(scales / 256) + 4 * 256 + 4


def most_tokens(config: PreTrainedConfig) -> tuple[int, int]:
    """The most views of an image, and the most visual tokens of a prompt; LLaVA-1.6's include one a row of patches."""
    size, side = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
    views, tokens = 1, side * side
    for height, width in getattr(config, "image_grid_pinpoints", []):
        rows, columns = height // size * side, width // size * side
        views, tokens = max(views, 1 + rows * columns // side**2), max(tokens, side * side + rows * (columns + 1))
    return views, tokens
