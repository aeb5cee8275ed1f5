"""A deep link and a report that were made to do harm: refused in a sentence, or shown in bounded time and memory."""

import base64
import copy
import io
import json
import os
import pickle
import random
import struct
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import longtail
from longtail import make, report
from longtail.export import Comparison, measure
from longtail.models import fetch

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo import arithmetic, board, draw, export, host, link, panel

VALUES = [None, True, -1, 1e308, 10**30, 2**63, 1.5, float("nan"), float("inf"), "x" * 300, [], [[0, 0]], {}, [10**6]]


@pytest.fixture(scope="module")
def good(llava, picture):
    """A report as it is exported, as plain JSON values."""
    reducers = [make("Full"), make("LongTail"), make("ToMe")]
    file = measure(llava, picture, "What?", reducers, repeat=2, max_new_tokens=3).file()
    return json.loads(json.dumps(file))


def shown(text: str) -> Comparison:
    """All that a replay does with a report, and what a visitor may then press."""
    comparison = report.read(text)
    export.lanes(comparison)
    result = board.Result(comparison, tuple(range(len(comparison.records))))
    board.standing(result, arithmetic.Sheet())
    for record in comparison.records:
        json.loads(panel.view(record), parse_constant=lambda name: pytest.fail(f"{name} is no JSON a browser reads"))
    return comparison


def fields(value, at=()):
    """Every place in a report; of a list its first and last."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, it in inside:
        if isinstance(key, str) or key in (0, len(value) - 1):
            yield from fields(it, (*at, key))


def test_a_report_with_anything_in_any_place_is_shown_or_a_sentence(good):
    random.seed(0)
    places = list(fields(good))
    for at, wrong in [(at, wrong) for at in places for wrong in random.sample(VALUES, 2)]:
        file = copy.deepcopy(good)
        spot = file
        for key in at[:-1]:
            spot = spot[key]
        if at:
            spot[at[-1]] = wrong
        try:
            shown(json.dumps(file if at else wrong))
        except ValueError as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 400, (at, wrong)


def png(width: int, height: int) -> str:
    """A picture of few bytes that says it is of that size."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    head = file.getvalue()
    return base64.b64encode(head[:16] + struct.pack(">II", width, height) + head[24:]).decode()


@pytest.mark.parametrize(
    "size", [(60_000, 60_000), (2049, 2049), (1, 2000), (12_000, 1), (0, 5), (2**31, 2**31)], ids=str
)
def test_a_crop_is_refused_by_its_header(good, size, monkeypatch):
    monkeypatch.setattr(report, "open_image", lambda data: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"the picture in this report is \d+ x \d+, and what a model sees has at most"):
        report.read(json.dumps(good | {"crop": f"data:image/png;base64,{png(*size)}"}))


def of_patches(record: dict, **changes) -> dict:
    """A record of 10,000 patches, each a visual token of its own."""
    every = list(range(10_000))
    views = [{"grid": [100, 100], "box": [0, 0, 1, 1]}]
    more = {"role": ["kept"] * 10_000, "source": every, "keep": every, "positions": every, "visual_span": [0, 10_000]}
    none = {"curve": None, "order": None, "tile_curves": [], "recycled": [], "lost": []}
    return record | more | none | {"views": views} | changes


def test_what_is_given_up_late_is_told_without_counting_every_patch_for_every_token(good):
    """10,000 tokens, 10,000 lost: all pairs would be a hundred million."""
    lost = list(range(10_000))
    record = of_patches(good["answers"][0], lost=lost, steps=[[5, token] for token in range(10_000)])
    comparison = shown(json.dumps(good | {"answers": [record]}))
    left = draw.fates(comparison.records[0]).left
    assert left[:3].tolist() == [1, 2, 3] and left[-1] == -1


@pytest.mark.parametrize(
    "text", ["x" * 20_000, "a b c d " * 2500, "e" + "\u0301" * 19_999], ids=["word", "words", "flood"]
)
def test_a_flood_of_text_is_compared_and_drawn(good, text):
    file = copy.deepcopy(good)
    file["answers"][1]["answer"], file["answers"][0]["answer"] = text, text[2:] + "z"
    comparison = shown(json.dumps(file))
    sheet = export.sheet(comparison.records[1], comparison.crop, comparison.conditions)
    assert sheet.height < 5000
    assert len(report.page(comparison)) < 10**6


@pytest.mark.parametrize(
    "change, words",
    [
        ({"views": [{"grid": [1, 1], "box": [0, 0, 1e-300, 1]}]}, "its patches are too small: at most 400 along"),
        ({"views": [{"grid": [6, 200], "box": [0, 0, 0.01, 1]}]}, "its patches are too small"),
        ({"views": [{"grid": [200, 200], "box": [0, 0, 1, 1]}] * 100}, "contradict each other"),
        ({"views": [{"grid": [10**9, 10**9], "box": [0, 0, 1, 1]}]}, "less than or equal to 200"),
        ({"curve": {"knee": 1, "kept": 1, "similarity": [0.0, 1.0] * 18}}, "contradict each other"),
        ({"curve": {"knee": 1, "kept": 1, "similarity": [1e308] * 36}}, "less than or equal to"),
        ({"curve": {"knee": 1, "kept": 1, "similarity": [0.0] * 10**5}}, "at most 10000 items"),
        ({"params": {"k" * 10**6: 1}}, "at most 200 characters"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_sizes_made_by_arithmetic_are_refused(good, change, words):
    file = copy.deepcopy(good)
    file["answers"][1] |= change
    with pytest.raises(ValueError, match=words) as refusal:
        report.read(json.dumps(file))
    assert len(str(refusal.value)) < 400


def test_an_html_report_without_end_is_read_once():
    """A pattern that is tried at every beginning would read it seven hundred thousand times."""
    with pytest.raises(ValueError, match=r"this is no report"):
        report.read(report.DATA * (report.LONGEST // len(report.DATA)))


def test_script_in_every_text_is_text(good):
    script = "</template><script>window.ran=1</script><img src=x onerror=window.ran=1>"
    file = copy.deepcopy(good) | {"conditions": script}
    for record in file["answers"]:
        record |= {name: script for name in ("question", "answer", "model", "method", "device", "preface")}
        record |= {"params": {script: script}, "history": [[script, script]]}
    page = report.page(report.read(json.dumps(file)))
    assert "<script" not in page and "<img" not in page and page.count("</template>") == 1
    assert report.read(page).records[0]["question"] == script


# ---- the address


@pytest.mark.parametrize(
    "wrong", ["nan", "1e999", "-1", "x", "", "<script>", "\u202e", "\ud800", "1" * 7000], ids=lambda it: ascii(it)[:9]
)
def test_every_field_of_a_link_refuses_what_it_is_not(wrong):
    for name in {*link.FIELDS, "m", "tab", "example", "recorded"} - {"values", "methods"}:  # a text, and a list
        with pytest.raises(ValueError, match=r"must be|there is no method") as refusal:
            link.linked([(name, wrong)], [])
        assert len(str(refusal.value)) < 700 and str(refusal.value).encode(), name


def test_a_vast_link_is_not_read():
    with pytest.raises(ValueError, match="at most 8,000 characters are read"):
        link.linked([("m", "Full")] * 4000, [])


# ---- checkpoints


def changed(place: Path, name: str, **changes):
    file = json.loads((place / name).read_text())
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        file[part] = file[part] | {inner: value} if inner else value
    (place / name).write_text(json.dumps(file))


class Trap:
    """What a pickle may hold: it would end the process that opens it."""

    def __reduce__(self):
        return os._exit, (66,)


def weights(place: Path, change):
    tensors = load_file(place / fetch.WEIGHTS)
    change(tensors, sorted(tensors)[0])
    save_file(tensors, place / fetch.WEIGHTS, metadata={"format": "pt"})


def elsewhere(place: Path, file: str):
    index = {"weight_map": {key: file for key in load_file(place / fetch.WEIGHTS)}}
    (place / fetch.INDEX).write_text(json.dumps(index))
    (place / fetch.WEIGHTS).unlink()


BROKEN = {
    "cut short": (lambda p: os.truncate(p / fetch.WEIGHTS, 9000), "damaged, or its download broke off"),
    "empty": (lambda p: os.truncate(p / fetch.WEIGHTS, 0), "damaged, or its download broke off"),
    "vast header": (lambda p: (p / fetch.WEIGHTS).write_bytes(struct.pack("<Q", 2**40)), "header too large"),
    "pickled": (lambda p: (p / fetch.WEIGHTS).write_bytes(pickle.dumps(Trap())), "damaged, or its download broke off"),
    "wrong shape": (lambda p: weights(p, lambda t, k: t.update({k: t[k][:1].clone()})), "are not of the shape"),
    "missing": (lambda p: weights(p, lambda t, k: t.pop(k)), "lacks 1 of the weights its config asks for"),
    "outside": (lambda p: elsewhere(p, "../model.safetensors"), "files of the folder itself alone"),
    "absolute": (lambda p: elsewhere(p, "/etc/passwd"), "files of the folder itself alone"),
    "pickled shard": (lambda p: elsewhere(p, "pytorch_model.bin"), "files of the folder itself alone"),
    "index of nothing": (lambda p: (elsewhere(p, ""), (p / fetch.INDEX).write_text("{}")), "names no weight files"),
    "layers": (
        lambda p: changed(p, "config.json", text_config__num_hidden_layers=10**9),
        "between 1 and 256, got 1000",
    ),
    "negative": (lambda p: changed(p, "config.json", vision_config__image_size=-1), "between 1 and 4096, got -1"),
    "image token": (lambda p: changed(p, "config.json", image_token_index=10**6), "image_token_index .* 0 and 299"),
    "words for sizes": (lambda p: changed(p, "config.json", text_config__hidden_size="x"), "expected int, got str"),
    "activation": (lambda p: changed(p, "config.json", text_config__hidden_act="evil"), "describes cannot be used"),
    "code": (lambda p: changed(p, "config.json", auto_map={"AutoConfig": "evil.X"}), "asks for code of the repository"),
    "code of the tokenizer": (
        lambda p: changed(p, "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.X"}),
        "tokenizer_config.json of .* asks for code of the repository",
    ),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "has no tokenizer"),
    "no image processor": (lambda p: (p / "processor_config.json").unlink(), "has no image processor"),
    "template": (lambda p: (p / "chat_template.jinja").write_text("{% for"), "the chat template or the tokenizer of"),
    "template without an image": (lambda p: (p / "chat_template.jinja").write_text("hello"), "0 places for an image"),
    **{
        f"{name}, {what}": (
            lambda p, name=name, text=text: (p / name).write_text(text),
            "cannot be used|no JSON object",
        )
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
        for what, text in (("broken", "{"), ("null", "null"), ("deep", "[" * 100_000))
    },
}


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the random model, with something wrong about it."""

    def broken_(change) -> str:
        place = tmp_path / "model"
        place.mkdir()
        for file in filter(Path.is_file, folder.iterdir()):
            (place / file.name).write_bytes(file.read_bytes())
        (place / "evil.py").write_text("import os; os._exit(66)")
        change(place)
        return str(place)

    return broken_


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_a_sentence(broken, case):
    change, words = BROKEN[case]
    with pytest.raises(ValueError, match=words) as refusal:
        longtail.load(broken(change))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_weights_that_are_no_numbers_answer_nothing(broken, picture):
    place = broken(lambda p: weights(p, lambda tensors, key: tensors[key].fill_(float("nan"))))
    with pytest.raises(ValueError, match="computes numbers that are not finite: its weights are damaged"):
        longtail.answer(longtail.load(place), picture, "What?", max_new_tokens=1)


def test_every_door_refuses_it(broken, folder, picture, tmp_path, capsys):
    """The command line and the server exit with 2; a page that changes its model has the one before."""
    import app
    from longtail.__main__ import main

    place = broken(BROKEN["cut short"][0])
    picture.save(tmp_path / "picture.png")
    assert main(["answer", str(tmp_path / "picture.png"), "What?", "--model", place]) == 2
    assert app.main(["--model", place]) == 2
    assert capsys.readouterr().err.count("its download broke off") == 2

    def load(name, progress=None):
        return longtail.load(name)

    there = host.Host(load(str(folder)), (str(folder), place), load)
    with pytest.raises(ValueError, match="its download broke off"):
        there.change(place)
    assert there.name == str(folder)
    assert longtail.answer(there.ready(), picture, "What?", max_new_tokens=1).token_ids
