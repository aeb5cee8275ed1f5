"""LLaVA-1.5 as transformers lays it out: the only room that knows its attribute paths."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..tokens import DecoderLayer, Question, Reduced, TowerLayer, TowerView, VisualTokens, tower_layer
from .clip import ClipText
from .loading import Loaded

MAX_QUESTION = 4000  # characters, all that was said before it included


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one question about one image becomes: token ids [T] on the host, with a run of placeholders, and pixels."""

    ids: Tensor
    pixels: Tensor  # [views, 3, S, S]
    question: Question
    preamble: Question  # the text before the image


class Llava:
    """A LLaVA-1.5 model and its processor."""

    loaded: Loaded | None = None  # how it came into memory, where `load` brought it

    def __init__(self, model, processor, name: str = "llava", folder: str = "", quantization: str = "none"):
        self.model, self.processor, self.name, self.quantization = model.eval(), processor, name, quantization
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.language_model, self.decoder_layers = model.model.language_model, model.model.language_model.layers
        self.feature_layer = model.config.vision_feature_layer % (len(self.tower.encoder.layers) + 1)  # reads its input
        self.heads = model.config.text_config.num_attention_heads  # query heads of a decoder layer
        self.single_turn = getattr(model.config, "single_turn", False)  # trained on one question a prompt, no history
        self.device, self.dtype = model.device, self.tower.embeddings.patch_embedding.weight.dtype
        self.clip = ClipText.beside(folder, self.tower)
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])

    # ---- prompt

    def prompt(self, image: Image.Image, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """Chat template, ids, pixels. `history`: (question, answer) pairs that came before, the image in the first.

        Raises ValueError for an empty question, for more characters than are read, and for a history that is no pairs.
        """
        _refuse_what_cannot_be_asked(question, history)
        *before, question = (self._inert(text) for text in (*chain.from_iterable(history), question))
        text = self.processor.apply_chat_template(_messages([*before, question]), add_generation_prompt=True)
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        ids = inputs["input_ids"][0]
        preamble = self.decode_text(ids[: int((ids == self.model.config.image_token_id).int().argmax())].tolist())
        asked = self._question(question, lambda visual: self.clip.relevance(question, visual.features))
        before = self._question(preamble, lambda visual: self.clip.last_relevance(preamble, visual.layer(24).hidden))
        return Prompt(ids, inputs["pixel_values"].to(self.device, self.dtype), asked, before)

    def _question(self, text: str, relevance: Callable) -> Question:
        ids = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
        return Question(ids, self.embed(ids.to(self.device)), relevance if self.clip else None)

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
        proportional: bool = False,
    ):
        """The tower, layer by layer, up to the one LLaVA reads: [(VisualTokens, Reduced by trim or None)] per view.

        `layers` (counted of 24) are captured; `trim`, if given, acts on the way, with `proportional` attention to what
        it merged; `between` runs before each layer.
        """
        return [self._view(pixels[None], prompt, layers, trim, between, proportional) for pixels in prompt.pixels]

    def _view(self, pixels, prompt, layers, trim, between, proportional):
        depth, captured, trimmed = len(self.tower.encoder.layers), {}, None
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(pixels))  # [1, 1+N, D]
        stop = self.feature_layer
        last = max([stop, *(tower_layer(layer, depth) for layer in layers)])
        for i in range(last + 1):  # layer `last` may be read, it is never run
            captured |= {n: self._capture(i, hidden) for n in layers if tower_layer(n, depth) == i}
            if i == stop:
                read = hidden
            if i == last:
                break
            if between:
                between()
            hidden, trimmed = self._block(i, hidden, trimmed, trim if i < stop else None, proportional)
        asked = prompt.question, prompt.preamble
        return VisualTokens(read[0, 1:], read[0, 0], self.grid, captured, self.projector, *asked), trimmed

    def _block(self, i, hidden, trimmed, trim, proportional):
        """One tower layer, with `trim` entering it and between its attention and its MLP."""
        block = self.tower.encoder.layers[i]
        if trim is None:
            return block(hidden, attention_mask=None), trimmed
        entered, trimmed = self._trim(trim, "entering", i, hidden, hidden, trimmed, None)
        bias = _log_size(trimmed, entered) if proportional and trimmed else None
        hidden = entered + block.self_attn(block.layer_norm1(entered), attention_mask=bias)[0]
        hidden, trimmed = self._trim(trim, "between", i, hidden, entered, trimmed, bias)
        return hidden + block.mlp(block.layer_norm2(hidden)), trimmed

    def _trim(self, trim, place, i, hidden, read, trimmed, bias):
        """What `trim` makes of the states `hidden`, in or before the layer that reads `read`."""
        block = self.tower.encoder.layers[i]
        view = TowerView(
            index=i,
            depth=len(self.tower.encoder.layers),
            running=self.feature_layer,
            place=place,
            visual=VisualTokens(hidden[0, 1:], hidden[0, 0], self.grid),
            read=lambda: self._capture(i, read),
            value=lambda: block.self_attn.v_proj(block.layer_norm1(read))[0],
            attention=lambda rows: _tower_attention(block, read, rows, bias),
            before=trimmed,
        )
        reduced = trim(view)
        if reduced is None:
            return hidden, trimmed
        hidden = torch.cat([hidden[:, :1], reduced.features[None]], dim=1)
        return hidden, reduced if trimmed is None else trimmed.then(reduced)

    def _capture(self, i, hidden) -> TowerLayer:
        """What layer `i` reads and makes of it; behind the last layer, its output alone."""
        blocks = self.tower.encoder.layers
        if i == len(blocks):
            return TowerLayer(hidden[0], hidden[0, :0], hidden[0, :0], blocks[-1].self_attn.num_heads)
        attention, normed = blocks[i].self_attn, blocks[i].layer_norm1(hidden)
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

    def view(self, layer, hidden: Tensor, rotary) -> DecoderLayer:
        """Queries and keys that a decoder layer makes of the states [T, D] it reads, computed when asked for."""
        attention = layer.self_attn

        def heads(project, rows, rotated):
            states = project(layer.input_layernorm(hidden[rows]))
            states = states.view(1, len(states), -1, attention.head_dim).transpose(1, 2)
            cos, sin = (wave[:, rows] for wave in rotary)
            return (apply_rotary_pos_emb(states, states, cos, sin)[0] if rotated else states)[0]

        return DecoderLayer(
            query=lambda rows, rotated: heads(attention.q_proj, rows, rotated),
            key=lambda rotated: heads(attention.k_proj, slice(None), rotated),
        )

    def norm(self, hidden: Tensor) -> Tensor:
        """The language model's final norm of states [T, D]."""
        return self.language_model.norm(hidden)

    def decode_text(self, ids: list[int]) -> str:
        """Words of generated ids, special tokens left out."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _messages(texts: list[str]) -> list[dict]:
    """Question, answer, question, ... as a chat template reads them; the image stands in the first turn."""
    turns = zip(cycle(("user", "assistant")), texts, strict=False)
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image"})
    return messages


def _refuse_what_cannot_be_asked(question: str, history: Sequence[tuple[str, str]]):
    """ValueError where a question is empty, there is too much text, or an earlier turn is no question and answer."""
    for turn in history:
        if not isinstance(turn, tuple | list) or [type(text) for text in turn] != [str, str]:
            raise ValueError(f"the history must be pairs of a question and its answer, got {turn!r}")
    if not all(asked.strip() for asked in (question, *(asked for asked, _ in history))):
        raise ValueError("the question is empty: type what you want to know about the image")
    if len(question) > MAX_QUESTION:
        raise ValueError(
            f"the question has {len(question):,} characters, at most {MAX_QUESTION:,} are read: shorten it"
        )
    whole = len(question) + sum(len(text) for turn in history for text in turn)
    if whole > MAX_QUESTION:
        raise ValueError(
            f"the question and what was said before it have {whole:,} characters, at most {MAX_QUESTION:,} are read: "
            "ask with fewer turns before it"
        )


def _log_size(trimmed: Reduced, hidden: Tensor) -> Tensor:
    """Additive attention bias [1, 1, 1, 1+N]: log of the patches each token speaks for; CLS is one."""
    size = functional.pad(trimmed.size(), (1, 0), value=1.0)
    return size.log().to(hidden)[None, None, None]


def _tower_attention(block, hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights [H, R, 1+N] of a tower layer's query rows, float32, recomputed for those rows only."""
    attention, normed = block.self_attn, block.layer_norm1(hidden)[0]
    query = attention.q_proj(normed[rows]).view(len(rows), attention.num_heads, -1).transpose(0, 1)
    key = attention.k_proj(normed).view(len(normed), attention.num_heads, -1).permute(1, 2, 0)
    logits = (query @ key).float() * attention.scale
    return (logits if bias is None else logits + bias[0].float()).softmax(-1)


def refuse_other_layouts(config, name: str):
    """ValueError, before a weight is read, unless this is a CLIP tower with CLS and one feature layer."""
    tower, layer = config.vision_config.model_type, config.vision_feature_layer
    if tower != "clip_vision_model":
        raise ValueError(f"{name} has a {tower!r} vision tower: only CLIP's, which has a CLS token, is supported")
    if not isinstance(layer, int) or config.vision_feature_select_strategy != "default":
        raise ValueError(
            f"{name} reads tower layers {layer} by strategy {config.vision_feature_select_strategy!r}: "
            "only one layer without its CLS token ('default') is supported"
        )
