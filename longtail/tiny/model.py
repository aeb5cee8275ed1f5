"""The networks: a LLaVA of six million parameters, its CLIP text tower, and the heads that exist only in training."""

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from .tokenizer import BOS, EOS, IMAGE, PAD, VOCABULARY
from .world import BACKGROUNDS, COLORS, DIGITS, GRID, LETTERS, MOST_ITEMS, PATCH, PLACES, SHAPES, SIDE, SIZES

WIDTH, HEADS, VISION_LAYERS, LANGUAGE_LAYERS = 192, 3, 7, 6
SHARED = 128  # width of the space that images and texts share

# What every patch must tell about its owner, and how many answers there are (0 = nobody's).
PATCH_LABELS = {
    "content": 1 + len(SHAPES) + len(LETTERS + DIGITS),
    "color": 1 + len(COLORS),
    "size": 1 + len(SIZES),
    "place": 1 + len(PLACES),
    "centre": 3,
    "letter": 6,
    "background": len(BACKGROUNDS),
    "count": MOST_ITEMS + 1,
}
PATCH_WEIGHTS = {
    "content": 1.0,
    "color": 1.0,
    "size": 0.5,
    "place": 0.5,
    "centre": 0.5,
    "letter": 0.5,
    "background": 0.3,
    "count": 0.4,
}
LETTER_WEIGHT = 3.5
IMAGE_LABELS = len(SHAPES) + len(COLORS) + len(LETTERS + DIGITS)  # present or not


class Teachers(nn.Module):
    """Linear heads for what the pictures are known to show; dropped at export."""

    def __init__(self):
        super().__init__()
        self.patch_norm = nn.LayerNorm(WIDTH)
        self.patch_head = nn.Linear(WIDTH, sum(PATCH_LABELS.values()))
        self.image_head = nn.Linear(WIDTH, IMAGE_LABELS + MOST_ITEMS + 1 + len(BACKGROUNDS))


class Miniature(nn.Module):
    """Everything that is trained together."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.llava = LlavaForConditionalGeneration(llava_config())
        self.text = CLIPTextModelWithProjection(text_config())
        self.visual_projection = nn.Linear(WIDTH, SHARED, bias=False)
        self.phrase_scale = nn.Parameter(torch.tensor(2.0))
        self.caption_scale = nn.Parameter(torch.tensor(2.0))
        self.teachers = Teachers()
        with torch.no_grad():
            _start_vision(self.vision)
            _start_language(self.llava)

    @property
    def vision(self) -> nn.Module:
        tower = self.llava.model.vision_tower
        return getattr(tower, "vision_model", tower)


def llava_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=SHARED,
    )
    ends = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    language = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **ends,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        single_turn=True,  # trained on one question a prompt: an earlier turn confuses it
        **ends,
    )


def text_config() -> CLIPTextConfig:
    """The end token must not be 2: transformers then pools at the largest id instead of at the end of the text."""
    assert EOS != 2
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=SHARED,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def _start_vision(vision: nn.Module) -> None:
    """An initialisation for a short run from scratch: positions begin as two-dimensional waves."""
    embeddings = vision.embeddings
    quarter = WIDTH // 4
    rates = 100 ** -(torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    waves = [f(axis.reshape(-1, 1) * rates) for axis in (rows, columns) for f in (torch.sin, torch.cos)]
    embeddings.position_embedding.weight[0] = 0
    embeddings.position_embedding.weight[1:] = 0.3 * torch.cat(waves, 1)
    embeddings.patch_embedding.weight.normal_(0, (3 * PATCH * PATCH) ** -0.5)
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        _start_layer([attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1], len(vision.encoder.layers))
        _start_layer([attention.out_proj, layer.mlp.fc2], len(vision.encoder.layers), leaves=True)


def _start_language(llava: LlavaForConditionalGeneration) -> None:
    language, projector = llava.model.language_model, llava.model.multi_modal_projector
    for layer in language.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _start_layer(
            [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj], LANGUAGE_LAYERS
        )
        _start_layer([attention.o_proj, mlp.down_proj], LANGUAGE_LAYERS, leaves=True)
    language.embed_tokens.weight.normal_(0, 0.5)
    projector.linear_1.weight.normal_(0, WIDTH**-0.5)
    projector.linear_2.weight.normal_(0, 0.7 * WIDTH**-0.5)
    llava.lm_head.weight.normal_(0, 0.02)


def _start_layer(projections: list[nn.Linear], depth: int, leaves: bool = False) -> None:
    """Unit gain; what is added back to the residual stream is scaled down by the depth."""
    for projection in projections:
        projection.weight.normal_(0, projection.in_features**-0.5 * ((2 * depth) ** -0.5 if leaves else 1))
