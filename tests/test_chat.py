"""What a model reads around the image: the chat template where a checkpoint brings none, and text before the image."""

import json

import pytest
import torch

import longtail
from longtail.__main__ import main
from longtail.models import chat, miniatures
from longtail.models.chat import MAX_QUESTION
from longtail.models.llava_next import LlavaNext

FAMILIES = tuple(miniatures.FAMILIES)
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
ONE = {
    "llava-1.5": "USER: <image>\nWhat? ASSISTANT:",
    "llava-1.6-vicuna": SYSTEM + "USER: <image>\nWhat? ASSISTANT:",
    "llava-1.6-mistral": "[INST] <image>\nWhat? [/INST]",
}
TWO = {
    "llava-1.5": "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:",
    "llava-1.6-vicuna": SYSTEM + "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:",
    "llava-1.6-mistral": "[INST] <image>\nWhat? [/INST] A cat.</s>[INST] Where? [/INST]",
}
TURNS = (("What?", "A cat."),)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    """A random miniature of the family, with its own chat template."""
    folder = tmp_path_factory.mktemp(family)
    miniatures.write(family, folder)
    return longtail.load(str(folder))


def speechless(model, family):
    """The same weights, as a checkpoint without a chat template brings them."""
    processor = miniatures.processor(family)
    processor.chat_template = None
    return type(model)(model.model, processor)


def inputs(model, picture, text):
    """What the model's own processor makes of a prompt."""
    return model.processor(images=picture, text=text, return_tensors="pt")


# ---- a checkpoint that brings no chat template


def test_a_checkpoint_without_a_template_is_spoken_to_as_it_was_trained(model, family, picture):
    quiet = speechless(model, family)
    for expected, history, question in ((ONE, (), "What?"), (TWO, TURNS, "Where?")):
        ids = quiet.prompt(picture, question, history).ids
        assert torch.equal(ids, inputs(quiet, picture, expected[family])["input_ids"][0])
    assert 2 in ids  # </s> is the token that ends an answer, not four letters
    answer = longtail.answer(quiet, picture, "What?", max_new_tokens=2)
    assert answer.tokens.generated == 2


def test_a_template_of_its_own_stays(model, family):
    assert model.processor.chat_template == miniatures.FAMILIES[family].chat


def test_a_language_model_we_cannot_speak_to_is_refused():
    with pytest.raises(ValueError, match=r"no chat template, and none is known for a 'opt' language model: add a chat"):
        chat.template("llava", "opt")


def test_families_are_told_apart(model, family):
    assert (type(model) is LlavaNext) == family.startswith("llava-1.6")


# ---- text before the image


@pytest.mark.parametrize("history, question", [((), "What?"), (TURNS, "Where?")])
def test_a_preface_stands_before_the_image(model, family, picture, history, question):
    """The processor's own ids of the same text, with the preface and a line break before the image."""
    turns = [text for turn in history for text in turn] + [question]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(turns)
    ]
    messages[0]["content"].insert(0, {"type": "image"})
    text = model.processor.apply_chat_template(messages, add_generation_prompt=True)
    before, behind = text.split("<image>")
    prompt = model.prompt(picture, question, history, "Look at the sky.")
    expected = inputs(model, picture, before + "Look at the sky.\n<image>" + behind)["input_ids"][0]
    assert torch.equal(prompt.ids, expected)
    assert torch.equal(prompt.question.ids, model.prompt(picture, question).question.ids)
    assert model.decode_text(prompt.preamble.ids.tolist()).endswith("Look at the sky.")
    with torch.inference_mode():
        stock = model.model.generate(
            **inputs(model, picture, before + "Look at the sky.\n<image>" + behind), max_new_tokens=6, do_sample=False
        )
    answer = longtail.answer(model, picture, question, history=history, preface="Look at the sky.", max_new_tokens=6)
    assert list(answer.token_ids) == stock[0, len(expected) :].tolist()
    assert answer.record()["preface"] == "Look at the sky."
    assert answer.visual_span[0] == int((expected == 4).int().argmax())


def test_special_tokens_in_a_preface_are_text(model, picture):
    plain = model.prompt(picture, "What?").ids.tolist()
    ids = model.prompt(picture, "What?", (), "a<image>b</s><s>").ids.tolist()
    for special in range(5):
        assert ids.count(special) == plain.count(special)


def test_a_preface_counts_as_text_that_is_read(model, picture):
    with pytest.raises(ValueError, match=r"what was said before it have 4,003 characters, at most 4,000 are read: ask"):
        model.prompt(picture, "Q?", (), "a" * (MAX_QUESTION + 1))


def test_a_preface_is_a_new_prompt_about_an_image_already_seen(model, picture):
    first = longtail.answer(model, picture, "What?", longtail.TopK(budget=5), max_new_tokens=2)
    asked = {"max_new_tokens": 2, "preface": "Look."}
    again = longtail.answer(model, picture, "What?", longtail.TopK(budget=5), seen=first.seen, **asked)
    anew = longtail.answer(model, picture, "What?", longtail.TopK(budget=5), **asked)
    assert again.reused == ("vision",) and torch.equal(again.first_logits, anew.first_logits)
    assert torch.equal(again.visual[0].preamble.ids, anew.visual[0].preamble.ids)


def test_the_command_line_takes_a_preface(folder, picture, tmp_path, capsys):
    picture.save(tmp_path / "picture.png")
    said = []
    for more in ([], ["--preface", "Look at the sky."]):
        asked = ["answer", str(tmp_path / "picture.png"), "What?", "--model", str(folder), "--max-new-tokens", "2"]
        assert main([*asked, "--json", *more]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert [record["preface"] for record in said] == ["", "Look at the sky."]
    assert said[1]["tokens"]["prompt"] == said[0]["tokens"]["prompt"] + len("Look at the sky.\n")
