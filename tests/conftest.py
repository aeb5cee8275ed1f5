"""A random tiny LLaVA of the real classes, saved and loaded like any other, and the bundled model."""

import pytest
import torch
from browsing import browser, complaints, scenes, url, visit  # noqa: F401 (fixtures)
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import longtail

SIDE, PATCH = 48, 8  # 6 x 6 patches
CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
torch.set_num_threads(1)


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **names)


def random_llava(tower_layers: int = 5, key_value_heads: int = 2) -> LlavaForConditionalGeneration:
    """Random weights, scaled up so that answers do not repeat one token and embeddings are not all alike."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=tower_layers, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=key_value_heads, vocab_size=300, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-2,
                    vision_feature_select_strategy="default", image_seq_length=(SIDE // PATCH) ** 2)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(20 if "lm_head" in name else 50 if "embed_tokens" in name else 4)
    config = model.generation_config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The random tiny model as a folder on disk, CLIP text tower beside it."""
    place = tmp_path_factory.mktemp("random-tiny")
    random_llava().save_pretrained(place)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images, tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default", chat_template=CHAT,
        image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(place)  # fmt: skip
    return place


@pytest.fixture(scope="session")
def clip_folder(folder):
    """CLIP text tower and visual projection, laid out like CLIP's own checkpoint, beside the random model."""
    from safetensors.torch import load_file, save_file

    config = CLIPTextConfig(
        vocab_size=300, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, projection_dim=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(1)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "clip")
    tokenizer().save_pretrained(folder / "clip")
    weights = load_file(folder / "clip" / "model.safetensors") | {"visual_projection.weight": torch.randn(16, 32)}
    save_file(weights, folder / "clip" / "model.safetensors", metadata={"format": "pt"})
    return folder / "clip"


@pytest.fixture(scope="session")
def llava(folder):
    """The random tiny model, loaded as a user would."""
    return longtail.load(str(folder))


@pytest.fixture(scope="session")
def tiny():
    """The bundled, trained model."""
    return longtail.load("tiny")


@pytest.fixture(scope="session")
def picture():
    """A fixed picture with structure, not square."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(9, 12, 3, generator=generator).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)


def in_one_view(embeddings: torch.Tensor, span: tuple[int, int], grid: tuple[int, int] | None = None):
    """A prompt [T, D] whose visual tokens stand at `span`, as those of one view of that grid, a row by default."""
    from longtail.tokens import Spliced

    place = torch.arange(len(embeddings))
    visual = (span[0] <= place) & (place < span[1])
    columns = grid[1] if grid else span[1] - span[0]
    raster = torch.stack([(place - span[0]) // columns, (place - span[0]) % columns], dim=1)
    raster[~visual] = -1
    return Spliced(embeddings, span, place[visual], visual, raster, (span[1] - span[0],))


@pytest.fixture
def visual():
    """Builds VisualTokens of 36 random patches, or of the CLS similarities it is given."""
    return random_visual


def random_visual(seed: int = 0, rows: int = 6, columns: int = 6, width: int = 32) -> longtail.VisualTokens:
    from longtail.tokens import TowerLayer, VisualTokens

    generator = torch.Generator().manual_seed(seed)
    n = rows * columns

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    layers = {i: TowerLayer(draw(1 + n, width), draw(1, width) * 3, draw(1 + n, width), 4) for i in range(24)}
    return VisualTokens(draw(n, width), draw(width), (rows, columns), layers)
