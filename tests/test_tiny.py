"""The bundled miniature: its scenes tell the truth, its folder loads anywhere, and it can see."""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.tiny import cli
from longtail.tiny.captions import caption, phrases
from longtail.tiny.data import Encoder, Plan, ask, batch
from longtail.tiny.losses import Passes, answer, look
from longtail.tiny.measure import measure
from longtail.tiny.model import Miniature
from longtail.tiny.questions import FAMILIES, SHORT
from longtail.tiny.saliency import saliency
from longtail.tiny.scenes import HELD_OUT_PAIRS, HELD_OUT_SEED, described, questions, scene, score
from longtail.tiny.train import read_log

ROOT = Path(__file__).parent.parent
TINY = ROOT / "assets" / "tiny"
EXAMPLES = ROOT / "assets" / "examples"


@pytest.fixture(scope="module")
def stock():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(TINY, local_files_only=True, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(TINY, local_files_only=True)


def generate(stock, image, question, most=8):
    model, processor = stock
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=most, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(out, skip_special_tokens=True).strip()


# Scenes


@pytest.mark.parametrize("seed", [0, 77, HELD_OUT_SEED + 3])
def test_a_seed_is_a_scene(seed):
    one, two = scene(seed), scene(seed)
    assert one.image.tobytes() == two.image.tobytes() and one.image.size == (192, 192) and one.image.mode == "RGB"
    assert (one.items, one.texts, one.background) == (two.items, two.texts, two.background)
    assert questions(one) == questions(two)
    assert scene(seed + 1).image.tobytes() != one.image.tobytes()


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be between"):
        scene(seed)


def pairs_named(sentence):
    """Colour-shape pairs written side by side, or put to each other by a question about one of them."""
    return {(c, s) for c, s in HELD_OUT_PAIRS if re.search(rf"\b{c} {s}", sentence)}


def test_held_out_pairs_never_reach_training():
    rng = random.Random(3)
    for seed in rng.sample(range(HELD_OUT_SEED), 250):
        one = scene(seed)
        assert not {(i.color, i.shape) for i in one.items} & HELD_OUT_PAIRS
        said = [q.text + " " + q.answer for q in ask(one, rng)]
        said += [caption(one, rng), *(p for p, _ in phrases(one, rng, 3))]
        assert not any(pairs_named(sentence) for sentence in said)
        for question in (q for q in ask(one, rng) if q.family == "choice"):
            subject, *options = question.text.split("\n")
            denied = {o.split(". ")[1] for o in options if re.match("[ABCD]. ", o)}
            assert not any((c in subject and s in denied) or (s in subject and c in denied) for c, s in HELD_OUT_PAIRS)


def test_held_out_scenes_are_full_of_held_out_pairs():
    items = [i for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 60) for i in scene(seed).items]
    share = sum((i.color, i.shape) in HELD_OUT_PAIRS for i in items) / len(items)
    assert share > 0.2


def meant(one, name):
    """The items that a phrase such as `red object`, `small star` or `blue circle` fits."""
    words = name.split()
    return [i for i in one.items if all(w in (i.size, i.color, i.shape, "object") for w in words)]


def only(things):
    assert len(things) == 1
    return things[0]


def true_answer(one, text):
    """The answer read off the scene alone, without the code that asks."""
    text = text.split("\nAnswer")[0].split("\nPlease")[0]
    subject, *options = text.split("\n")
    if options:
        true = true_answer(one, subject)
        return only([o[0] for o in options if o[3:] == true])
    if m := re.fullmatch(r"Is there any text in the image\?", text):
        return "Yes" if one.texts else "No"
    if m := re.fullmatch(r"Is there an? (.+) in the image\?", text):
        return "Yes" if meant(one, m[1]) else "No"
    if m := re.fullmatch(r"Is the background (\w+)\?", text):
        return "Yes" if one.background == m[1] else "No"
    if m := re.fullmatch(r"What color is the (word|number)\?", text):
        return only([t for t in one.texts if t.kind == m[1]]).color
    if m := re.fullmatch(r"What color is the (.+)\?", text):
        return only(meant(one, m[1])).color
    if m := re.fullmatch(r"What shape is the (\w+) object\?", text):
        return only([i for i in one.items if i.color == m[1]]).shape
    if m := re.fullmatch(r"What shape is (?:at|on|in) the (.+)\?", text):
        return only([i for i in one.items if i.place == m[1]]).shape
    if m := re.fullmatch(r"Is the (.+) small or large\?", text):
        return only(meant(one, m[1])).size
    if m := re.fullmatch(r"Where is the (word|number)\?", text):
        return one.text.place
    if m := re.fullmatch(r"Where is the (.+)\?", text):
        return only(meant(one, m[1])).place
    if m := re.fullmatch(r"How many (.+) are there\?", text):
        return str(len(meant(one, "cross" if m[1] == "crosses" else m[1].removesuffix("s"))))
    if m := re.fullmatch(r"Is the (.+) (to the left of|to the right of|above|below) the (.+)\?", text):
        a, b = only(meant(one, m[1])), only(meant(one, m[3]))
        holds = {"to the left of": a.x < b.x, "to the right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
        return "Yes" if holds[m[2]] else "No"
    return {"What is the background like?": one.background}.get(text) or one.text.string


@pytest.mark.parametrize("first", [500, HELD_OUT_SEED])
def test_every_answer_follows_from_the_items(first):
    asked = set()
    for seed in range(first, first + 120):
        one = scene(seed)
        for question in questions(one):
            asked.add(question.family)
            if question.family == "describe":
                told = described(question.answer)
                assert sorted(told["items"]) == sorted((i.size, i.color, i.shape, i.place) for i in one.items)
                assert told["texts"] == [(t.string, t.place) for t in one.texts]
                assert told["background"] == one.background
            else:
                assert question.answer == true_answer(one, question.text), question
    assert asked == set(FAMILIES)


def test_yes_and_no_are_balanced():
    for family in ("exist", "relation"):
        said = [q.answer for seed in range(600) for q in questions(scene(seed), (family,))]
        assert 0.4 < said.count("Yes") / len(said) < 0.6


def test_patches_lie_where_their_things_are():
    for seed in range(40):
        one = scene(seed)
        things = [*one.items, *one.texts]
        assert one.patches.shape == (24, 24) and set(np.unique(one.patches)) == set(range(len(things) + 1))
        for number, thing in enumerate(things, 1):
            rows, columns = np.nonzero(one.patches == number)
            left, top, right, bottom = thing.box
            assert left - 8 < columns.min() * 8 and columns.max() * 8 < right
            assert top - 8 < rows.min() * 8 and rows.max() * 8 < bottom


def test_saliency_is_a_tail_and_no_oracle():
    kept = []
    for seed in range(60):
        one = scene(seed)
        wanted = saliency(one).reshape(-1)
        assert abs(wanted.sum() - 1) < 1e-4 and wanted.min() > 0 and wanted.max() < 0.2
        top = np.zeros(576, bool)
        top[np.argsort(-wanted)[:58]] = True
        kept.append(top[one.patches.reshape(-1) > 0].mean())
    assert 0.4 < np.mean(kept) < 0.95


def test_a_description_is_marked_by_what_it_names():
    one = scene(HELD_OUT_SEED + 1)
    reference = only(questions(one, ("describe",))).answer
    first, *rest = re.split(r"(?<=\.) ", reference)
    assert score("describe", reference, reference) == 1
    assert score("describe", " ".join([first, *rest[1:]]), reference) == pytest.approx(1 - 1 / len(rest))
    assert score("color", " red\n", "red") == 1 and score("color", "blue", "red") == 0


# The trainer's forward pass is transformers' own


def test_training_computes_what_transformers_computes(stock):
    model, processor = stock
    mini = Miniature(3).float()
    mini.llava.load_state_dict(model.state_dict())
    one = scene(HELD_OUT_SEED + 8)
    question, encode = questions(one)[2], Encoder()
    columns = batch([one], [[question]], Plan(1, 576, 64), encode, random.Random(0)) | {"user": encode.user}
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=one.image, text=text, return_tensors="pt")
    with torch.no_grad():
        features, _, _, _ = look(mini, columns, Passes())
        places = torch.arange(576)[None]
        logits, _ = answer(mini, features, columns, places, places + 2, Passes())
        out = model(**inputs)
    asked = inputs["input_ids"][0, 578:].tolist()
    assert columns["token"][0, : len(asked)].tolist() == asked
    assert torch.allclose(logits[0], out.logits[0, -1], atol=1e-3)


# The bundled folder


def test_the_export_is_small_and_complete():
    files = {str(f.relative_to(TINY)): f.stat().st_size for f in TINY.rglob("*") if f.is_file()}
    assert sum(files.values()) <= 25e6
    assert {"config.json", "chat_template.jinja", "README.md", "training.jsonl", "clip/model.safetensors"} <= set(files)
    assert json.loads((TINY / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_plain_transformers_answers(stock):
    right = []
    for seed in range(HELD_OUT_SEED + 20_000, HELD_OUT_SEED + 20_004):
        one = scene(seed)
        right += [generate(stock, one.image, q.text) == q.answer for q in questions(one, SHORT)]
    assert np.mean(right) > 0.85


def test_the_text_tower_pools_at_the_end_of_the_text():
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    tower = CLIPTextModelWithProjection.from_pretrained(TINY / "clip", local_files_only=True).float().eval()
    ids = AutoTokenizer.from_pretrained(TINY / "clip")("a red circle", return_tensors="pt")["input_ids"]
    longer = torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)], 1)
    with torch.no_grad():
        assert torch.allclose(tower(input_ids=ids).text_embeds, tower(input_ids=longer).text_embeds, atol=1e-4)
    projection = load_file(TINY / "clip" / "model.safetensors")["visual_projection.weight"]
    assert projection.shape == (tower.config.projection_dim, 192)


def test_the_bundled_model_sees(stock):
    mini = Miniature()
    mini.llava.load_state_dict(stock[0].state_dict())
    kept = [("cls", 576), ("cls", 128), ("random", 128)]
    marks = measure(mini, range(HELD_OUT_SEED + 30_000, HELD_OUT_SEED + 30_024), kept)
    table = {name: one.table() for name, one in marks.items()}
    assert table["cls-576"]["mean"] > 0.88
    assert all(table["cls-576"][family] > 0.6 for family in SHORT)
    assert table["cls-128"]["mean"] > 0.85
    assert table["random-128"]["mean"] < table["cls-128"]["mean"] - 0.04


def test_the_card_reports_what_was_measured():
    found = json.loads((TINY / "measurements.json").read_text())
    card = (TINY / "README.md").read_text()
    for family in SHORT:
        row = re.search(rf"^\| {family} \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", card, re.M)
        assert int(row[1]) == found["table"]["asked"][family]
        assert float(row[2]) == pytest.approx(found["table"]["cls-576"][family], abs=6e-4)
        assert float(row[3]) == pytest.approx(found["generate"][family], abs=6e-4)
    log, _ = read_log(TINY / "training.jsonl")
    assert [line["minutes"] for line in log] == sorted(line["minutes"] for line in log)


def test_examples_show_what_they_say(stock):
    examples = json.loads((EXAMPLES / "examples.json").read_text())
    assert len(examples) >= 12
    for one in examples:
        image = Image.open(EXAMPLES / one["image"]).convert("RGB")
        assert one["seed"] >= HELD_OUT_SEED and one["note"]
        drawn = scene(one["seed"]).image
        assert np.abs(np.subtract(image, drawn, dtype=np.float32)).mean() < 0.1  # another CPU may round otherwise
        assert generate(stock, image, one["question"], most=128) == one["answer"], one


# The command


def parse(*words):
    parser = argparse.ArgumentParser()
    cli.add_to(parser.add_subparsers())
    return parser.parse_args(["tiny", *map(str, words)])


def test_scenes_are_written(tmp_path):
    args = parse("scenes", "--count", 3, "--seed", HELD_OUT_SEED, "--out", tmp_path / "drawn")
    args.run(args)
    lines = [json.loads(line) for line in (tmp_path / "drawn" / "scenes.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [HELD_OUT_SEED, HELD_OUT_SEED + 1, HELD_OUT_SEED + 2]
    assert all((tmp_path / "drawn" / line["image"]).is_file() and line["questions"] for line in lines)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("scenes", "--count", 0, "--out", "x"), "--count must be between 1 and"),
        (("scenes", "--seed", -1, "--out", "x"), "--seed must be between 0 and"),
        (("train", "--minutes", 0, "--out", "x"), "--minutes must be above 0"),
        (("train", "--init", "nowhere", "--out", "x"), "no config.json"),
        (("export", "nowhere.pt", "x"), "there is no checkpoint"),
        (("export", "nowhere.pt", "x", "--scenes", -1), "--scenes must be between"),
    ],
)
def test_the_command_says_what_is_wrong(words, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parse(*words)
    with pytest.raises(ValueError, match=re.escape(reason)):
        args.run(args)
    assert not list(tmp_path.iterdir())
