"""LLaVA-1.5 as transformers lays it out: the only room that knows its attribute paths."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPTextModelWithProjection,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..tokens import Question, Reduced, TowerLayer, TowerView, VisualTokens, tower_layer

MAX_QUESTION = 4000  # characters


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one question about one image becomes: token ids [T] on the host, with a run of placeholders, and pixels."""

    ids: Tensor
    pixels: Tensor  # [views, 3, S, S]
    question: Question


class Llava:
    """A LLaVA-1.5 model and its processor."""

    def __init__(self, model, processor, name: str = "llava", folder: str = "", quantization: str = "none"):
        self.model, self.processor, self.name, self.quantization = model.eval(), processor, name, quantization
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.language_model, self.decoder_layers = model.model.language_model, model.model.language_model.layers
        self.device, self.dtype = model.device, self.tower.embeddings.patch_embedding.weight.dtype
        self.clip = ClipText(folder, self.tower) if (Path(folder) / "clip").is_dir() else None
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])

    @classmethod
    def from_pretrained(cls, place: str, name: str, dtype, quantization: str, device: str) -> "Llava":
        """Load weights (safetensors only, no remote code) and processor from a folder or the hub."""
        _refuse_other_layouts(AutoConfig.from_pretrained(place), name)
        options = {"dtype": dtype, "attn_implementation": "sdpa", "use_safetensors": True}
        if quantization != "none":
            options |= {"quantization_config": _bits_and_bytes(quantization, dtype), "device_map": {"": device}}
        model = AutoModelForImageTextToText.from_pretrained(place, **options)
        if quantization == "none":
            model = model.to(device)
        return cls(model, AutoProcessor.from_pretrained(place, backend="pil"), name, place, quantization)

    # ---- prompt

    def prompt(self, image: Image.Image, question: str) -> Prompt:
        """Chat template, ids, pixels. Raises ValueError for an empty question or one that is too long."""
        if not question.strip():
            raise ValueError("the question is empty: type what you want to know about the image")
        if len(question) > MAX_QUESTION:
            raise ValueError(
                f"the question has {len(question):,} characters, at most {MAX_QUESTION:,} are read: shorten it"
            )
        question = self._inert(question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        ids = self.processor.tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
        clip = None if self.clip is None else lambda visual: self.clip.relevance(question, visual.features)
        asked = Question(ids, self.embed(ids.to(self.device)), clip)
        return Prompt(inputs["input_ids"][0], inputs["pixel_values"].to(self.device, self.dtype), asked)

    def crop(self, image: Image.Image) -> Image.Image:
        """The square the model sees, at its own resolution: what masks are drawn on."""
        pixels = self.processor.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        return Image.fromarray(pixels["pixel_values"][0].transpose(1, 2, 0).round().clip(0, 255).astype("uint8"))

    def room(self) -> int:
        """Positions the language model was trained for."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        return side, side

    def _inert(self, text: str) -> str:
        """Special tokens in a visitor's text, broken by a zero-width space so that they stay text."""
        special = "|".join(map(re.escape, sorted(self.processor.tokenizer.all_special_tokens, key=len, reverse=True)))
        return re.sub(special, lambda found: found[0][0] + "\u200b" + found[0][1:], text)

    # ---- vision tower

    def encode(
        self,
        prompt: Prompt,
        layers: tuple[int, ...] = (),
        trim: Callable | None = None,
        between: Callable | None = None,
    ):
        """The tower, layer by layer, up to the one LLaVA reads: [(VisualTokens, Reduced by trim or None)] per view.

        `layers` (counted of 24) are captured; `trim`, if given, acts on the way; `between` runs before each layer.
        """
        return [self._view(pixels[None], layers, trim, between, prompt.question) for pixels in prompt.pixels]

    def _view(self, pixels, layers, trim, between, question):
        blocks, captured, trimmed = self.tower.encoder.layers, {}, None
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(pixels))  # [1, 1+N, D]
        stop = self.model.config.vision_feature_layer % (len(blocks) + 1)
        for i in range(stop + 1):  # layer `stop` may be read, it is never run
            captured |= {n: self._capture(blocks[i], hidden) for n in layers if tower_layer(n, len(blocks)) == i}
            if i == stop:
                break
            if between:
                between()
            hidden, trimmed = self._block(i, hidden, trimmed, trim, question)
        features, cls = hidden[0, 1:], hidden[0, 0]
        return VisualTokens(features, cls, self.grid, captured, self.projector, question), trimmed

    def _block(self, i, hidden, trimmed, trim, question):
        """One tower layer, with `trim` entering it and between its attention and its MLP."""
        block = self.tower.encoder.layers[i]
        if trim is None:
            return block(hidden, attention_mask=None), trimmed
        hidden, trimmed = self._trim(trim, "entering", i, hidden, trimmed, question)
        hidden = hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=None)[0]
        hidden, trimmed = self._trim(trim, "between", i, hidden, trimmed, question)
        return hidden + block.mlp(block.layer_norm2(hidden)), trimmed

    def _trim(self, trim, place, i, hidden, trimmed, question):
        blocks = self.tower.encoder.layers
        visual = VisualTokens(hidden[0, 1:], hidden[0, 0], self.grid, question=question)
        reduced = trim(TowerView(i, len(blocks), place, visual, lambda: self._capture(blocks[i], hidden)))
        if reduced is None:
            return hidden, trimmed
        hidden = torch.cat([hidden[:, :1], reduced.features[None]], dim=1)
        return hidden, reduced if trimmed is None else trimmed.then(reduced)

    @staticmethod
    def _capture(block, hidden) -> TowerLayer:
        attention, normed = block.self_attn, block.layer_norm1(hidden)
        query, key = attention.q_proj(normed[:, :1])[0], attention.k_proj(normed)[0]
        return TowerLayer(hidden[0], query, key, attention.num_heads)

    # ---- language model

    def splice(self, prompt: Prompt, views: list[Reduced]) -> tuple[Tensor, tuple[int, int]]:
        """Embeddings [T, D] with the placeholders replaced by the projected visual tokens, and where these stand."""
        spots = (prompt.ids == self.model.config.image_token_id).nonzero().flatten()
        first, after = int(spots[0]), int(spots[-1]) + 1
        assert after - first == len(spots), "the image placeholders are one run"
        before, behind = (self.embed(ids.to(self.device)) for ids in (prompt.ids[:first], prompt.ids[after:]))
        visual = torch.cat([self.projector(view.features) for view in views]).to(before.dtype)
        return torch.cat([before, visual, behind]), (first, first + len(visual))

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [T, D] of token ids [T]."""
        return self.model.get_input_embeddings()(ids)

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embedding of true `positions` [T], in the dtype of `hidden`."""
        return self.language_model.rotary_emb(hidden[None], position_ids=positions[None])

    def decode_layer(self, layer, hidden: Tensor, rotary, cache, mask: Tensor | None = None) -> Tensor:
        """One decoder layer over `hidden` [T, D]; SDPA reads no mask as causal, which is meant."""
        return layer(hidden[None], attention_mask=mask, past_key_values=cache, position_embeddings=rotary)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [V] of one position's last hidden state [D]."""
        return self.model.lm_head(self.language_model.norm(hidden[None, None]))[0, 0]

    def attention_rows(self, layer, hidden: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Causal attention weights [H, R, T] of some query rows [R], float32, recomputed from what the layer reads."""
        attention, normed = layer.self_attn, layer.input_layernorm(hidden[None])
        cos, sin = self.rotary(hidden, positions)
        query, key = (
            project(normed).view(1, len(hidden), -1, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # grouped queries share keys
        weights = (query[0, :, rows] @ key[0].transpose(1, 2)).float() * attention.scaling
        later = torch.arange(len(hidden), device=rows.device) > rows[:, None]
        return weights.masked_fill(later, -torch.inf).softmax(-1)

    def decode_text(self, ids: list[int]) -> str:
        """Words of generated ids, special tokens left out."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


class ClipText:
    """CLIP's text tower and visual projection beside a vision tower, loaded on first need."""

    def __init__(self, folder: str, tower):
        self.folder, self.tower, self.parts = str(Path(folder) / "clip"), tower, None

    def relevance(self, text: str, features: Tensor) -> Tensor:
        """Cosine [N] of the text and each of the patches `features` [N, D], post-normed and projected; raw sign."""
        model, tokenizer, projection = self._load()
        limit = model.config.max_position_embeddings
        ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").input_ids
        words = model(input_ids=ids.to(features.device)).text_embeds.float()
        patches = functional.linear(self.tower.post_layernorm(features).float(), projection)
        return functional.cosine_similarity(words, patches, dim=-1)

    def _load(self):
        if self.parts is None:
            device = self.tower.post_layernorm.weight.device
            model = CLIPTextModelWithProjection.from_pretrained(self.folder, use_safetensors=True).to(device).eval()
            with safe_open(Path(self.folder) / "model.safetensors", framework="pt") as weights:
                projection = weights.get_tensor("visual_projection.weight").float().to(device)
            self.parts = model, AutoTokenizer.from_pretrained(self.folder), projection
        return self.parts


def _refuse_other_layouts(config, name: str):
    """ValueError, before a weight is read, unless this is a CLIP tower with CLS and one feature layer."""
    tower, layer = config.vision_config.model_type, config.vision_feature_layer
    if tower != "clip_vision_model":
        raise ValueError(f"{name} has a {tower!r} vision tower: only CLIP's, which has a CLS token, is supported")
    if not isinstance(layer, int) or config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"{name} reads tower layers {layer} by strategy {config.vision_feature_select_strategy!r}: "
            "only one layer without its CLS token ('default') is supported"
        )


def _bits_and_bytes(quantization: str, dtype) -> BitsAndBytesConfig:
    """int8, or NF4 with double quantisation. The tower stays whole: its scores decide what is kept."""
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401  (transformers asks for both only after the download)
    except ImportError as error:
        raise ValueError(f"{quantization} needs two packages more: pip install bitsandbytes accelerate") from error
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else int8 says once a matmul that it casts
    skip = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip, **four)
