"""LLaVA-1.5 as transformers lays it out: the only room that knows its attribute paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..image import Picture, open_picture
from ..tokens import DecoderLayer, Reduced, Spliced, VisualTokens
from . import chat
from .asked import Asked, Once
from .clip import ClipText
from .layout import Layout
from .loading import Loaded
from .pixels import make
from .tower import Passed, Tower


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one question about one image becomes: token ids [T] on the host, with a run of placeholders, and pixels."""

    ids: Tensor
    pixels: Tensor  # [tiles, 3, S, S]
    layout: Layout  # of the run of placeholders
    question: Asked
    preamble: Asked  # the text before the image


class Llava:
    """A LLaVA-1.5 model and its processor."""

    loaded: Loaded | None = None  # how it came into memory, where `load` brought it
    eager = False  # whether nothing may be captured as a CUDA graph
    graphs: object | None = None  # a `graph.Graphs`, once something was to be captured

    def __init__(
        self, model, processor, name: str = "llava", folder: str = "", quantization: str = "none", pixels: str = "exact"
    ):
        self.model, self.processor, self.name, self.quantization = model.eval(), processor, name, quantization
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.language_model, self.decoder_layers = model.model.language_model, model.model.language_model.layers
        feature_layer = model.config.vision_feature_layer % (len(self.tower.encoder.layers) + 1)
        self.vision = Tower(self.tower, feature_layer)  # LLaVA reads that layer's input
        self.heads = model.config.text_config.num_attention_heads  # query heads of a decoder layer
        self.single_turn = getattr(model.config, "single_turn", False)  # trained on one question a prompt, no history
        self.device, self.dtype = model.device, self.tower.embeddings.patch_embedding.weight.dtype
        self.special = processor and chat.Special(processor.tokenizer)
        self.frames: dict[tuple[int, bool], list[int]] = {}  # texts, whether one precedes the image -> special ids
        self.clip = ClipText.beside(folder, self.tower)
        self.pixels, self.eye = pixels, processor and make(pixels, processor.image_processor, name)
        if processor and not processor.chat_template:
            processor.chat_template = chat.template(model.config.model_type, model.config.text_config.model_type)
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])

    # ---- prompt

    def open(self, source: bytes | str | Path | Image.Image | Picture) -> Picture:
        """Decode an image the way this model's pixels want it. Raises BadImage as `open_image` does."""
        return self.eye.open(source)

    def prompt(
        self, image: Image.Image | Picture, question: str, history: Sequence[tuple[str, str]] = (), preface: str = ""
    ) -> Prompt:
        """Chat template, ids, pixels. `history`: (question, answer) pairs that came before, the image in the first.

        `preface` stands before the image, in a line of its own. Raises ValueError for an empty question, for more
        characters than are read, and for a history that is no pairs.
        """
        picture = open_picture(image)
        layout = self.layout(picture.size)
        ids, asked, preamble = self.text(question, history, preface, len(layout))
        return Prompt(ids, self.eye.read(picture, self.device, self.dtype), layout, asked, preamble)

    def text(
        self, question: str, history: Sequence[tuple[str, str]] = (), preface: str = "", places: int = 1
    ) -> tuple[Tensor, Asked, Asked]:
        """A prompt without its image: token ids [T] with a run of so many placeholders, the question, and the text
        before the image. The one placeholder of the chat template is tokenised once and then repeated."""
        chat.refuse(question, history, preface)
        *earlier, question = map(self.special.inert, (*chain.from_iterable(history), question))
        ids = self._spoken([*earlier, question], self.special.inert(preface))
        spots = (ids == self.model.config.image_token_id).nonzero().flatten().tolist()
        if len(spots) != 1:
            raise ValueError(
                f"the prompt has {len(spots)} places for an image, not one: the chat template or the tokenizer of this "
                "model is not its own"
            )
        if self.special.of(ids.tolist()) != self._frame(len(earlier) + 1, bool(preface)):
            raise ValueError(
                f"the text holds what {self.name} reads as a mark of its own: leave out "
                f"{', '.join(self.processor.tokenizer.all_special_tokens)} and what looks like them"
            )
        before, image, behind = ids.tensor_split((spots[0], spots[0] + 1))
        asked = self._asked(
            lambda: question,
            lambda text: self.clip.words(text),
            lambda words, visual: self.clip.relevance(words, visual.features),
        )
        preamble = self._asked(
            lambda: self.decode_text(before.tolist()),
            lambda text: self.clip.last_words(text),
            lambda words, visual: self.clip.last_relevance(words, visual.layer(24).hidden),
        )
        return torch.cat([before, image.expand(places), behind]), asked, preamble

    def _spoken(self, texts: list[str], preface: str) -> Tensor:
        """Token ids [T] of question, answer, ..., question in the chat template, the image as one placeholder."""
        text = self.processor.apply_chat_template(chat.messages(texts), add_generation_prompt=True)
        if preface:
            image = self.processor.image_token
            text = text.replace(image, f"{preface}\n{image}", 1)
        return self._ids(text, add_special_tokens=True)

    def _frame(self, texts: int, preface: bool) -> list[int]:
        """The special ids that the chat template itself puts around so many texts."""
        if (texts, preface) not in self.frames:
            self.frames[texts, preface] = self.special.of(self._spoken(["a"] * texts, "a" * preface).tolist())
        return self.frames[texts, preface]

    def layout(self, size: tuple[int, int]) -> Layout:
        """Where the patches of an image of that width and height stand in the prompt."""
        return Layout.single(self.grid)

    def _asked(self, text: Callable[[], str], words: Callable, match: Callable) -> Asked:
        """A text that is read when a method asks for it."""
        once = Once(lambda: words(text()), self.device) if self.clip else None
        return Asked(lambda: self._ids(text()), lambda ids: self.embed(ids.to(self.device)), once, match)

    def _ids(self, text: str, add_special_tokens: bool = False) -> Tensor:
        """Token ids [T] of a text."""
        return torch.tensor(self.processor.tokenizer(text, add_special_tokens=add_special_tokens).input_ids).long()

    def crop(self, image: Image.Image | Picture) -> Image.Image:
        """The square the model sees, at its own resolution: what masks are drawn on."""
        return Image.fromarray(self._shown(open_picture(image))[0])

    def _shown(self, picture: Picture) -> np.ndarray:
        """The grey levels [V, S, S, 3] of each view, uint8."""
        return self.eye.views(picture, self.device).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def views(self, size: tuple[int, int]) -> list[dict]:
        """Grid of patches, and place in the crop, of each view of an image of that width and height."""
        return [{"grid": list(view.grid), "box": list(view.box)} for view in self.layout(size).views]

    def room(self) -> int:
        """Positions the language model was trained for."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def capturable(self) -> bool:
        """Whether its work can be captured as a CUDA graph: on one GPU, torch's current one, and nothing in it asks the
        host, as LLM.int8() does for the outliers of each matrix it multiplies."""
        places = set(getattr(self.model, "hf_device_map", {}).values())
        alone = self.device.type == "cuda" and len(places) < 2
        alone = alone and self.device.index in (None, torch.cuda.current_device())
        return alone and self.quantization != "int8" and not self.eager

    @property
    def states(self) -> tuple[int, int, int]:
        """Decoder layers, key heads, and channels of a head: what a token leaves in the KV cache, keys and values."""
        text, attention = self.model.config.text_config, self.decoder_layers[0].self_attn
        return len(self.decoder_layers), text.num_key_value_heads, attention.head_dim

    @property
    def description(self) -> str:
        """What answers depend on beside the device: tiny, float32; and fast pixels, where they are."""
        fast = [f"{self.pixels} pixels"] * (self.pixels != "exact")
        return ", ".join([self.name, str(self.dtype).removeprefix("torch."), *fast])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        return side, side

    @property
    def most_tiles(self) -> int:
        """Tiles an image may be cut into, beside the view of the whole of it."""
        return 0

    # ---- vision tower

    def encode(
        self,
        prompt: Prompt,
        layers: tuple[int, ...] = (),
        trim: Callable | None = None,
        between: Callable | None = None,
        proportional: bool = False,
        looks=None,
    ):
        """The tower, layer by layer, up to the one LLaVA reads: [(VisualTokens, Reduced by trim or None)] per view.

        `layers` (counted of 24) are captured; `trim`, if given, acts on the way, with `proportional` attention to what
        it merged; `between` runs before each layer, and `looks` (a `graph.Looks`) all of them at once where no `trim`
        acts. All views run as one batch, with `trim` one after another.
        """
        if trim is None:
            return self.encode_together([prompt], layers, between, looks)[0]
        how = layers, between, trim, proportional
        ways = [self.vision.trim(prompt.pixels[[v.tile]], v.patches, v.grid, *how) for v in prompt.layout.views]
        return self._beside(ways, prompt)

    def encode_together(
        self, prompts: list[Prompt], layers: tuple[int, ...] = (), between: Callable | None = None, looks=None
    ):
        """What `encode` makes of each prompt, the views of all their images as one batch; nothing acts inside."""
        views = [prompt.layout.views for prompt in prompts]
        pixels = torch.cat([prompt.pixels[[v.tile for v in own]] for prompt, own in zip(prompts, views, strict=True)])
        ways = iter(self.vision.run(pixels, [view.patches for own in views for view in own], layers, between, looks))
        return [self._beside(list(islice(ways, len(p.layout.views))), p) for p in prompts]

    def _beside(self, ways: list[Passed], prompt: Prompt) -> list[tuple[VisualTokens, Reduced | None]]:
        """What reducers see of each view, and where it stands among the others."""
        layout, made, whole = prompt.layout, [], None
        firsts = accumulate(layout.sizes, initial=0)
        for way, view, first in zip(ways, layout.views, firsts, strict=False):
            visual = VisualTokens(
                features=way.states[1:],
                cls=way.states[0],
                grid=view.grid,
                layers=way.layers,
                project=self.projector,
                question=prompt.question,
                preamble=prompt.preamble,
                box=view.box,
                region=view.region,
                tile=(view.tile, layout.tiles),
                views=layout.sizes,
                first=first,
                whole=whole,
            )
            whole = whole or visual
            made.append((visual, way.trimmed))
        return made

    # ---- language model, whose layers may lie on several devices: what goes in and comes out is on the first

    def splice(self, prompt: Prompt, views: list[Reduced]) -> Spliced:
        """The prompt with the placeholders replaced by the projected visual tokens, and by newlines where they belong.

        Raises ValueError where the placeholders are not those of this image, in one run.
        """
        spots = (prompt.ids == self.model.config.image_token_id).nonzero().flatten()
        first, after = int(spots[0]), int(spots[-1]) + 1
        if not after - first == len(spots) == len(prompt.layout):
            raise ValueError(
                f"the prompt has {len(spots)} placeholders for {len(prompt.layout)} places of the image, or they are "
                "not in one run: the chat template or the image processor of this model is not its own"
            )
        before, behind = (self.embed(ids.to(self.device)) for ids in (prompt.ids[:first], prompt.ids[after:]))
        tokens = torch.cat([self.projector(view.features).to(self.device) for view in views] + self._newline())
        arranged = prompt.layout.arrange(views)
        run = tokens[arranged.order.to(tokens.device)].to(before.dtype)
        around = (first, len(behind))
        return Spliced(
            embeddings=torch.cat([before, run, behind]),
            span=(first, first + len(run)),
            positions=first + arranged.order.argsort(stable=True)[len(run) - int(arranged.visual.sum()) :],
            visual=functional.pad(arranged.visual, around).to(self.device),
            raster=functional.pad(arranged.raster, (0, 0, *around), value=-1).to(self.device),
            views=prompt.layout.sizes,
        )

    def _newline(self) -> list[Tensor]:
        """The embedding [1, D] that closes a row of tiles, where there is one."""
        return []

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [T, D] of token ids [T]."""
        return self.model.get_input_embeddings()(ids).to(self.device)

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embedding of true `positions` [T], in the dtype of `hidden`."""
        cos, sin = self.language_model.rotary_emb(hidden[None], position_ids=positions[None])
        return cos.to(self.device), sin.to(self.device)

    def decode_layer(self, layer, hidden: Tensor, rotary, cache, mask: Tensor | None = None) -> Tensor:
        """One decoder layer over `hidden` [T, D]; SDPA reads no mask as causal, which is meant."""
        states = layer(hidden[None], attention_mask=mask, past_key_values=cache, position_embeddings=rotary)[0]
        return states.to(self.device)

    def decode_together(self, layer, hidden: Tensor, rotary, attend: Callable) -> Tensor:
        """One decoder layer over positions `hidden` [N, D] of several answers. `attend` takes their queries, keys and
        values [1, heads, N, d], and returns what each answer's `attention` makes of its own [1, N, heads, d]."""
        module, read = layer.self_attn, layer.input_layernorm(hidden[None])
        query, key, value = (
            project(read).view(1, len(hidden), -1, module.head_dim).transpose(1, 2)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *(wave.to(query.device) for wave in rotary))
        states = hidden.to(query.device) + module.o_proj(attend(query, key, value).flatten(2))[0]
        return (states + layer.mlp(layer.post_attention_layernorm(states))).to(self.device)

    def attention(self, layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What a decoder layer's queries [1, H, T, d] read of keys and values [1, H_kv, S, d], as [1, T, H, d]; SDPA
        reads no mask as causal."""
        module = layer.self_attn
        attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
        return attend(module, query, key, value, mask, dropout=0.0, scaling=module.scaling)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [V] of one position's last hidden state [D], or [B, V] of those of several [B, D]."""
        return self.model.lm_head(self.language_model.norm(hidden[None, None]))[0, 0].to(self.device)

    def view(self, layer, hidden: Tensor, rotary) -> DecoderLayer:
        """Queries and keys that a decoder layer makes of the states [T, D] it reads, computed when asked for."""
        attention = layer.self_attn

        def heads(project, rows, rotated):
            states = project(layer.input_layernorm(hidden[rows]))
            states = states.view(1, len(states), -1, attention.head_dim).transpose(1, 2)
            cos, sin = (wave[:, rows] for wave in rotary)
            states = states.to(self.device)
            return (apply_rotary_pos_emb(states, states, cos, sin)[0] if rotated else states)[0]

        return DecoderLayer(
            query=lambda rows, rotated: heads(attention.q_proj, rows, rotated),
            key=lambda rotated: heads(attention.k_proj, slice(None), rotated),
        )

    def norm(self, hidden: Tensor) -> Tensor:
        """The language model's final norm of states [T, D]."""
        return self.language_model.norm(hidden).to(self.device)

    def decode_text(self, ids: list[int]) -> str:
        """Words of generated ids, special tokens left out."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


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
