"""CLIP's text tower beside the vision tower, against transformers used by hand."""

import dataclasses
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextModelWithProjection

import longtail
from longtail.models.clip import CHECKPOINTS, ClipText


@pytest.fixture(scope="module")
def clip(llava, clip_folder):
    return ClipText(str(clip_folder), llava.tower)


@pytest.fixture(scope="module")
def by_hand(clip_folder):
    """Text model, tokenizer, projection."""
    projection = load_file(clip_folder / "model.safetensors")["visual_projection.weight"]
    return (
        CLIPTextModelWithProjection.from_pretrained(clip_folder).eval(),
        AutoTokenizer.from_pretrained(clip_folder),
        projection,
    )


def cosines(words, patches):
    return torch.stack([words @ p / words.norm() / p.norm() for p in patches])


@torch.no_grad()
def test_a_short_text_is_one_piece(clip, by_hand, llava):
    text, tokenizer, projection = by_hand
    features = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    words = text(**tokenizer("a cat", return_tensors="pt")).text_embeds[0]
    patches = llava.tower.post_layernorm(features) @ projection.T
    torch.testing.assert_close(
        clip.relevance(clip.words("a cat"), features), cosines(words, patches), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_a_long_text_is_the_mean_of_its_pieces(clip, by_hand, llava):
    text, tokenizer, projection = by_hand
    long = "what is to the left of the red cat? " * 12
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    whole, empty = tokenizer(long).input_ids, tokenizer("").input_ids
    first, last = empty[:1], empty[1:]
    words = whole[len(first) : len(whole) - len(last)]
    room = text.config.max_position_embeddings - len(empty)
    assert len(words) > 2 * room
    expected = torch.zeros(5)
    pieces = [words[i : i + room] for i in range(0, len(words), room)]
    for piece in pieces:
        embedded = text(input_ids=torch.tensor([[*first, *piece, *last]])).text_embeds[0]
        expected += cosines(embedded, llava.tower.post_layernorm(features) @ projection.T) / len(pieces)
    torch.testing.assert_close(clip.relevance(clip.words(long), features), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_released_recoverable_reads_the_last_padded_position(clip, by_hand):
    text, tokenizer, projection = by_hand
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    length = text.config.max_position_embeddings
    ids = tokenizer("USER:", padding="max_length", max_length=length, return_tensors="pt").input_ids
    last = text(input_ids=ids).last_hidden_state[0, -1] @ text.text_projection.weight.T
    expected = cosines(last, states[1:] @ projection.T)  # no post norm, CLS cut
    torch.testing.assert_close(clip.last_relevance(clip.last_words("USER:"), states), expected, rtol=1e-4, atol=1e-5)


def test_real_llava_gets_the_checkpoint_its_tower_came_from(llava, tmp_path):
    shape = {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24}
    large = SimpleNamespace(config=SimpleNamespace(**shape))
    assert ClipText.beside(str(tmp_path), large).place == "openai/clip-vit-large-patch14-336" in CHECKPOINTS.values()
    assert ClipText.beside(str(tmp_path), llava.tower) is None


@torch.no_grad()
def test_a_whole_clip_checkpoint_is_read_as_the_hub_has_it(llava, by_hand, tmp_path, monkeypatch):
    """The hub's CLIP is a CLIPModel: the same text, the same cosine, its own visual projection."""
    text, tokenizer, projection = by_hand
    config = CLIPConfig(
        text_config=text.config.to_dict(), vision_config=llava.tower.config.to_dict(), projection_dim=16
    )
    torch.manual_seed(0)
    whole = CLIPModel(config).eval()
    whole.visual_projection.weight.data = projection
    whole.text_model.load_state_dict(text.text_model.state_dict())
    whole.text_projection.load_state_dict(text.text_projection.state_dict())
    monkeypatch.setattr("longtail.models.clip.CLIPModel.from_pretrained", lambda place: whole)
    monkeypatch.setattr("longtail.models.clip.AutoTokenizer.from_pretrained", lambda place: tokenizer)
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    words = text(**tokenizer("a cat", return_tensors="pt")).text_embeds[0]
    fetched = ClipText("owner/name", llava.tower)
    got = fetched.relevance(fetched.words("a cat"), features)
    patches = llava.tower.post_layernorm(features) @ projection.T
    torch.testing.assert_close(got, cosines(words, patches), rtol=1e-4, atol=1e-5)


def test_layer_24_is_the_output_of_the_whole_tower(llava, picture):
    """What Recoverable's released code projects; the features LLaVA reads are untouched by running one layer more."""
    prompt = llava.prompt(picture, "What is here?")
    with torch.inference_mode():
        (plain, _), *_ = llava.encode(prompt)
        (more, _), *_ = llava.encode(prompt, (24,))
        stock = llava.tower(prompt.pixels, output_hidden_states=True).hidden_states
    assert torch.equal(plain.features, more.features)
    torch.testing.assert_close(more.layer(24).hidden, stock[-1][0])
    assert dataclasses.is_dataclass(more.preamble) and longtail.Full().layers_read() == ()


def test_a_text_tower_that_cannot_be_had_is_a_sentence(llava, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = ClipText("nobody/has-this", llava.tower)
    with pytest.raises(
        ValueError, match=r"text tower nobody/has-this could not be read .*: connect once .* folder clip"
    ):
        text.words("a dog")
    assert text.parts is None, "the next question tries again"
