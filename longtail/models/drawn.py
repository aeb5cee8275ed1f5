"""A whole architecture with random weights under a prompt that is drawn: no download, no tokenizer. For speed alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
)

from ..image import Picture, open_picture
from . import FAMILIES, memory, miniatures
from .asked import Asked, Once
from .catalogue import KNOWN, decoder_linears, weights
from .clip import ClipText
from .llava import Llava, Prompt
from .precision import NEVER, Precision, options, refuse_shapes


def medium() -> LlavaConfig:
    """A LLaVA-1.5 whose language model is 1024 wide and 12 layers deep, behind a small tower: seconds on a CPU."""
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=336,
        patch_size=14, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16, vocab_size=32064,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, vision_feature_layer=-2)


CONFIGS = {name: known.config for name, known in KNOWN.items() if known.hub}
CONFIGS |= {f"tiny-{family}": partial(miniatures.config, family) for family in miniatures.FAMILIES}
CONFIGS["medium"] = medium
VIT_L_TEXT = partial(
    CLIPTextConfig, hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
)


class Drawn:
    """A model that is asked one drawn prompt, whatever image and question it is given; all else is the model's own."""

    ends: frozenset = frozenset()  # an answer has as many tokens as were asked for
    pixels = "drawn"

    def __init__(self, llava: Llava, prompt: Prompt):
        self.llava, self.drawn = llava, prompt

    def __getattr__(self, name: str):
        return getattr(self.llava, name)

    def open(self, source) -> Picture:
        """The picture, which nobody looks at."""
        return open_picture(source)

    def prompt(self, *asked) -> Prompt:
        """The one that was drawn, nothing of its text read yet."""
        return replace(self.drawn, question=self.drawn.question.anew(), preamble=self.drawn.preamble.anew())

    def decode_text(self, ids: list[int]) -> str:
        """The ids themselves: there is no tokenizer."""
        return " ".join(map(str, ids))


def drawn(
    name: str, precision: Precision, device: str, text: int = 60, size: tuple[int, int] | None = None, seed: int = 0
) -> Drawn:
    """The architecture `name` of CONFIGS, under a prompt of so many text tokens, half of them before the image.

    `size`: width and height of the image, which LLaVA-1.6 tiles; twice a view's by default. Raises ValueError for an
    unknown name, for shapes that int4 cannot pack, and where the weights do not fit what is free on the device.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no architecture {name!r}: choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]()
    memory.refuse(name, config, precision, device, weights(config, precision))
    model = untrained(config, precision, device, seed)
    llava = FAMILIES[config.model_type](model, None, name, "", precision.quantization)
    clip = miniatures.clip_config() if name.startswith(("tiny-", "medium")) else VIT_L_TEXT()
    llava.clip = _clip(llava, clip, text - text // 2, seed)
    return Drawn(llava, _prompt(llava, text, size or (2 * config.vision_config.image_size,) * 2, seed))


def stack(name: str, precision: Precision, device: str, layers: int | None, text: int = 60, seed: int = 0) -> Drawn:
    """The language model of the architecture `name` alone, under a prompt of so many text tokens: all of its decoder
    layers, or the first few and the same share of its vocabulary, so that all times and bytes are that share.

    Two layers of the tower are there to be asked for shapes, and no CLIP. Raises ValueError as `drawn`, and for a
    number of layers that the architecture does not have.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no architecture {name!r}: choose from {', '.join(CONFIGS)}")
    config = _sliced(CONFIGS[name](), layers)
    memory.refuse(name, config, precision, device, weights(config, precision))
    model = untrained(config, precision, device, seed)
    llava = FAMILIES[config.model_type](model, None, name, "", precision.quantization)
    llava.clip = ClipText("", llava.tower)  # never read: no method here asks what the text means
    return Drawn(llava, _prompt(llava, text, (config.vision_config.image_size,) * 2, seed))


def _sliced(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    text, config.vision_config.num_hidden_layers = config.get_text_config(), 2
    depth = text.num_hidden_layers
    layers = depth if layers is None else layers
    if not 1 <= layers <= depth:
        raise ValueError(f"the language model has {depth} decoder layers, got {layers}: choose from 1 to {depth}")
    text.vocab_size, text.num_hidden_layers = text.vocab_size * layers // depth, layers
    text.pad_token_id = 0  # the model's own may lie beyond
    return config


def untrained(config: PreTrainedConfig, precision: Precision, device: str, seed: int = 0) -> nn.Module:
    """Weights as a training would begin with, drawn where they stay; a layer to be quantised is drawn and packed alone,
    so that no more than one is ever held whole."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=precision.dtype, attn_implementation="sdpa")
    refuse_shapes(precision.quantization, decoder_linears(model), device)
    packed = _packing(model, precision, device)
    for module in model.modules():
        if module not in packed:
            module.to_empty(device=device, recurse=False)
    torch.manual_seed(seed)
    model.init_weights()
    for layer in packed:
        _pack(layer, config.get_text_config().initializer_range, precision, device)
    return model.requires_grad_(False).eval()


def _packing(model: nn.Module, precision: Precision, device: str) -> list[nn.Module]:
    """The layers that will be quantised, put in place of the linear ones, on the meta device."""
    if precision.quantization == "none":
        return []
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, NEVER, options(precision, device)["quantization_config"])
    layers = list(decoder_linears(model).values())
    for layer in layers:
        layer._is_hf_initialized = True  # transformers' own mark: init_weights passes it by
    return layers


def _pack(layer: nn.Module, std: float, precision: Precision, device: str):
    """Draw the weight of one layer on the device, in `precision.dtype`, and quantise it."""
    weight = torch.empty(layer.weight.shape, dtype=precision.dtype, device=device).normal_(std=std)
    given = {name: value for name, value in vars(layer.weight).items() if name not in ("SCB", "CB")}
    weight = weight.cpu() if precision.quantization == "int8" else weight  # int8 is packed on the way to the device
    layer.weight = type(layer.weight)(weight, requires_grad=False, **given).to(device)


# ---- the prompt


def _prompt(llava: Llava, text: int, size: tuple[int, int], seed: int) -> Prompt:
    """`text` drawn ids around the placeholders of an image of that size, and drawn pixels, as after normalisation."""
    draws, config, layout = torch.Generator().manual_seed(seed), llava.model.config, llava.layout(size)
    image, side = config.image_token_id, config.vision_config.image_size
    ids = torch.randint(config.text_config.vocab_size - 1, (text,), generator=draws)
    ids += ids >= image  # any but the placeholder
    before, behind = ids[: text // 2], ids[text // 2 :]
    pixels = torch.randn(1 + layout.tiles, 3, side, side, generator=draws).to(llava.device, llava.dtype)
    clip = llava.clip
    return Prompt(
        ids=torch.cat([before, torch.full((len(layout),), image), behind]),
        pixels=pixels,
        layout=layout,
        question=_asked(llava, behind, clip.words, lambda words, visual: clip.relevance(words, visual.features)),
        preamble=_asked(
            llava, before, clip.last_words, lambda words, visual: clip.last_relevance(words, visual.layer(24).hidden)
        ),
    )


def _asked(llava: Llava, ids: Tensor, words: Callable[[str], Tensor], match: Callable) -> Asked:
    once = Once(lambda: words("a text"), llava.device)
    return Asked(lambda: ids, lambda ids: llava.embed(ids.to(llava.device)), once, match)


def _clip(llava: Llava, config: CLIPTextConfig, words: int, seed: int) -> ClipText:
    """A random CLIP text tower beside the vision tower, in float32 as the checkpoint's, over so many drawn words."""
    torch.manual_seed(seed)
    tower = CLIPTextModelWithProjection(config).to(llava.device).eval().requires_grad_(False)
    projection = torch.randn(config.projection_dim, llava.model.config.vision_config.hidden_size).to(llava.device)
    clip = ClipText("", llava.tower)
    clip.parts = tower, _words(config, words), projection
    return clip


def _words(config: CLIPTextConfig, count: int):
    """In place of CLIP's tokenizer: the same drawn ids for every text, none for an empty one."""
    ids = torch.randint(3, 200, (count,)).tolist()

    def words(text: str, max_length: int = 0, return_tensors: str = "", **_):
        whole = [config.bos_token_id, *(ids if text else []), config.eos_token_id]
        whole = (whole + [config.eos_token_id] * max_length)[:max_length] if max_length else whole
        return SimpleNamespace(input_ids=torch.tensor([whole]) if return_tensors else whole)

    return words
