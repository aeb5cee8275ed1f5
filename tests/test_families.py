"""Every family, on random checkpoints: beside stock transformers, the parity table, the benchmark at full size."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import longtail
from longtail import parity
from longtail.__main__ import main
from longtail.bench import model as fullsize
from longtail.generate import Answer
from longtail.models import drawn, memory, miniatures
from longtail.models.catalogue import weights
from longtail.models.llava import Llava
from longtail.models.precision import Precision, held

ASK = "What stands in the corner?"
FAMILIES = tuple(miniatures.FAMILIES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes each family's checkpoint once; its folder."""
    folders = {}

    def write(family):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            miniatures.write(family, folders[family])
        return str(folders[family])

    return write


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, checkpoint):
    """A model of ours, and transformers' own with its processor, loaded apart from it."""
    place = checkpoint(request.param)
    stock = AutoModelForImageTextToText.from_pretrained(place), AutoProcessor.from_pretrained(place, backend="pil")
    return longtail.load(place), *stock


def said(capsys, *argv):
    status = main(list(argv))
    out, err = capsys.readouterr()
    return status, out, err


# ---- beside stock transformers


@pytest.mark.parametrize("shape", parity.SIZES)
@torch.inference_mode()
def test_full_is_stock_generate_on_every_shape(pair, shape):
    llava, model, processor = pair
    image = parity.picture(parity.SIZES[shape])
    content = [{"type": "image"}, {"type": "text", "text": ASK}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    answer = longtail.answer(llava, image, ASK, max_new_tokens=20)
    assert list(answer.token_ids) == expected and len(set(expected)) > 3, "the weights let answers differ"
    assert answer.tokens.prompt == inputs["input_ids"].shape[1]
    torch.testing.assert_close(answer.first_logits, model(**inputs).logits[0, -1], rtol=1e-5, atol=1e-5)


def test_the_tiles_are_as_many_as_the_shape_asks_for(pair):
    llava = pair[0]
    tiled = hasattr(llava.model.config, "image_grid_pinpoints")
    for shape, views in (("one tile", 3), ("most tiles", 5)):
        answer = longtail.answer(llava, parity.picture(parity.SIZES[shape]), ASK, max_new_tokens=1)
        assert len(answer.visual) == (views if tiled else 1)


@pytest.mark.parametrize(
    "family, prompt",
    [
        ("llava-1.5", "USER: <image>\nWho? ASSISTANT:"),
        ("llava-1.6-vicuna", "Look closely. USER: <image>\nWho? ASSISTANT:"),
        ("llava-1.6-mistral", "[INST] <image>\nWho? [/INST]"),
    ],
)
def test_each_family_has_its_chat_template(checkpoint, family, prompt):
    processor = AutoProcessor.from_pretrained(checkpoint(family), backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    assert processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True) == prompt


def test_a_seed_makes_other_weights():
    first, same, other = (
        miniatures.random_model(miniatures.config("llava-1.5"), seed).lm_head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no family 'llava-2': choose from llava-1"):
        miniatures.write("llava-2", tmp_path)


# ---- the parity table


def test_the_parity_table_of_every_family_and_precision(capsys, monkeypatch):
    monkeypatch.setattr(parity, "EVERYTHING", ("LongTail:budget=576:heavy=1:recent=1", "H2O:heavy=1:recent=1"))
    monkeypatch.setattr(parity, "IN_TOWER", ("ToMe:r=0",))
    monkeypatch.setattr(parity, "STEPS", 8)
    status, out, _ = said(capsys, "parity", "--shapes", "odd", "--json")
    record = json.loads(out)
    rows = record["rows"]
    assert status == 0 and torch.__version__ in record["conditions"] and "stock" in record["meaning"]
    expected = [(f, p, c) for f in FAMILIES for p in parity.PRECISIONS for c in parity.CHECKS]
    assert [(row["family"], row["precision"], row["check"]) for row in rows] == expected
    for row in rows:
        assert row["verdict"] in ("equal", "within") and 0 <= row["largest"] <= row["tolerance"] < 0.02, row
        assert row["cases"] == {"everything kept": 2, "hidden states": 3}.get(row["check"], 1)


def test_every_method_that_can_keep_everything_then_changes_nothing(checkpoint):
    rows = [*parity.rows(checkpoint("llava-1.6-mistral"), "", "float32", "cpu", {"20:1": (80, 4)})]
    kept = {row.check: row for row in rows}
    assert kept["everything kept"].largest == 0 and kept["everything kept"].cases == len(parity.EVERYTHING)
    assert kept["kept in tower"].verdict in ("equal", "within")


@pytest.mark.parametrize(
    "style, line", [((), ""), (("--markdown",), "| llava-1.5 | float32 | tokens | 2 | 0 | 1e-05 |")]
)
def test_the_parity_table_in_words(capsys, monkeypatch, style, line):
    monkeypatch.setattr(parity, "EVERYTHING", ("TopK:budget=576",))
    asked = ("parity", "--families", "llava-1.5", "--precisions", "float32", "--shapes", "1x1,1:20")
    status, out, _ = said(capsys, *asked, *style)
    assert status == 0 and line in out and out.count("float32") == len(parity.CHECKS)
    assert "everything kept" in out and parity.MEANING in out and "transformers" in out.splitlines()[-1]


def test_an_engine_that_strays_fails_the_table(capsys, monkeypatch):
    right = Llava.logits
    monkeypatch.setattr(Llava, "logits", lambda self, hidden: right(self, hidden).roll(1))
    monkeypatch.setattr(parity, "EVERYTHING", ("TopK:budget=576",))
    with pytest.raises(SystemExit, match="longtail: 3 of 7 checks failed"):
        main(["parity", "--families", "llava-1.5", "--precisions", "float32", "--shapes", "odd"])
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    checks = ("first logits", "tokens", "second question")
    assert all(check in line for check, line in zip(checks, failed, strict=True))


def test_one_differing_method_fails_the_table(checkpoint, monkeypatch):
    monkeypatch.setattr(parity, "EVERYTHING", ("TopK:budget=576", "TopK:budget=35"))
    found = [*parity.rows(checkpoint("llava-1.5"), "llava-1.5", "float32", "cpu", {"odd": (61, 37)})]
    (row,) = [row for row in found if row.verdict == "FAILED"]
    assert (row.check, row.cases, row.largest, row.at) == ("everything kept", 2, float("inf"), "odd, TopK:budget=35")


def test_a_precision_that_cannot_run_is_named_with_its_reason(capsys, monkeypatch):
    def without(place, dtype, quantization, device):
        raise ValueError(f"{quantization} needs two packages more")

    monkeypatch.setattr(parity, "load", without)
    status, out, _ = said(capsys, "parity", "--families", "llava-1.5", "--precisions", "int8")
    assert status == 0 and "not run  int8 needs two packages more" in out


def test_what_counts_as_a_difference():
    one = torch.tensor([1.0, -4.0])
    assert parity.apart(one, one) == 0 and parity.apart(one + 0.5, one) == 0.125
    assert parity.apart(one[:1], one) == parity.apart(one * float("nan"), one) == float("inf")


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--families", "llava-3"), "--families takes llava-1.5, llava-1.6-vicuna, llava-1.6-mistral or all"),
        (("--precisions", ","), "--precisions takes float32, bfloat16, float16, int8, int4 or all"),
        (("--shapes", "round"), "--shapes takes 1x1, 1:20"),
    ],
)
def test_parity_refuses_in_a_sentence(capsys, flags, sentence):
    status, out, err = said(capsys, "parity", *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


# ---- the benchmark at full size, on a miniature

SMALL = ("bench", "model", "--random", "tiny-llava-1.6-mistral", "--dtype", "float32", "--device", "cpu", "--new", "3")
FEW = (*SMALL, "--methods", "LongTail,FastV", "--repeat", "1", "--warm-up", "0")


def test_every_method_runs_and_the_last_line_is_the_record(capsys, tmp_path):
    file = tmp_path / "bench.json"
    status, out, err = said(capsys, *SMALL, "--repeat", "2", "--warm-up", "1", "--text", "12", "--out", str(file))
    *words, last = out.splitlines()
    record = json.loads(last)
    rows, under = record["rows"], record["conditions"]
    assert (status, err) == (0, "") and record == json.loads(file.read_text())
    assert [row["method"] for row in rows] == [*longtail.REDUCERS] and not any("reason" in row for row in rows)
    assert all(row["rounds"] == 2 and row["tokens"]["generated"] == 3 for row in rows)
    assert all(min(row["seconds"]["prefill"], row["seconds"]["per_token"], row["peak_bytes"]) > 0 for row in rows)
    full, by_name = rows[0], {row["method"]: row for row in rows}
    assert full["first_token_of_full"] == 1 and (under["patches"], under["views"]) == (180, 5)
    assert full["tokens"]["prompt"] == 12 + 180 + 12, "text, patches, a newline for each of 12 rows"
    entries = full["tokens"]["kv_entries"]
    assert full["tokens"]["kv_bytes"] == entries * 2 * 3 * 2 * 16 * 4, "keys and values, layers, heads, width, float32"
    assert by_name["TopK"]["tokens"]["visual"] == 5 * 8 and by_name["FastV"]["tokens"]["layer_mean"] < 180
    assert fullsize.SENTENCE in words and sum(line.startswith("medians") for line in words) == len(rows)
    assert sum(line.startswith("1 of 2") for line in words) == sum(line.startswith("warm-up") for line in words)


@pytest.mark.parametrize("name", ["tiny-llava-1.5", "tiny-llava-1.6-vicuna"])
def test_the_other_families_run_too(capsys, name):
    status, out, _ = said(capsys, *FEW[:3], name, *FEW[4:], "--json")
    assert status == 0 and [row["method"] for row in json.loads(out)["rows"]] == ["Full", "LongTail", "FastV"]


def test_the_order_turns_and_ratios_are_of_one_round(monkeypatch):
    plan = fullsize.Plan("tiny-llava-1.5", methods="TopK,Random", repeat=3, warm_up=0)
    seconds = iter(range(1, 10))

    def measured(llava, reducer, plan):
        phases = dict.fromkeys(fullsize.TIMES, float(next(seconds)))
        return {"finished": "length", "seconds": phases, "tokens": {}, "peak_bytes": None}

    monkeypatch.setattr(fullsize, "once", measured)
    found = [*fullsize.rounds(None, plan)]
    assert [name for _, name, _ in found] == [
        *("Full", "TopK", "Random"),
        *("TopK", "Random", "Full"),
        *("Random", "Full", "TopK"),
    ]
    runs = {name: {turn: run for turn, other, run in found if other == name} for name in ("Full", "TopK")}
    row = fullsize.row("TopK", runs["TopK"], runs["Full"])
    assert row["seconds"]["total"] == 4 and row["spread"]["total"] == [2, 9]
    assert row["first_token_of_full"] == sorted([2 / 1, 4 / 6, 9 / 8])[1]


def test_a_method_that_cannot_run_says_why_and_the_others_go_on(capsys):
    status, out, _ = said(capsys, *SMALL, "--methods", "Manual:patches=999,TopK", "--repeat", "2", "--json")
    full, manual, topk = json.loads(out)["rows"]
    assert status == 0 and "Manual.patches names patch 999, but this image has" in manual["reason"]
    assert full["rounds"] == topk["rounds"] == 2


def test_the_time_limit_is_of_each_answer(capsys):
    status, out, _ = said(capsys, *FEW, "--time-limit", "0.000001")
    assert status == 0 and out.count("not measured: the time limit came after 0 tokens") == 6


def test_what_was_measured_before_the_end_is_in_the_file(monkeypatch, tmp_path, capsys):
    file, once, calls = tmp_path / "bench.json", fullsize.once, []

    def killed(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return once(*asked)

    monkeypatch.setattr(fullsize, "once", killed)
    assert main([*FEW, "--out", str(file)]) == 1
    assert [row["method"] for row in json.loads(file.read_text())["rows"]] == ["Full", "LongTail"]
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]] == ["Full", "LongTail"]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_random_weights_are_held_as_loaded_ones_are(checkpoint, quantization):
    loaded = longtail.load(checkpoint("llava-1.6-mistral"), "bfloat16", quantization, "cpu").model
    precision = Precision(torch.bfloat16, quantization)
    made = drawn.untrained(miniatures.config("llava-1.6-mistral"), precision, "cpu")
    kinds = [{n: (type(m), p.dtype) for n, m in x.named_modules() for p in m.parameters(False)} for x in (made, loaded)]
    assert kinds[0] == kinds[1] and held(made) == held(loaded)
    assert held(made) == pytest.approx(weights(made.config, precision), rel=1e-3)
    again = drawn.untrained(miniatures.config("llava-1.6-mistral"), precision, "cpu").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in made.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), loaded.buffers(), strict=True)), "rotary waves"


def test_a_drawn_prompt_is_one_the_engine_takes():
    model = drawn.drawn("tiny-llava-1.6-vicuna", Precision(torch.float32), "cpu", text=13, size=(144, 48))
    answer = longtail.answer(model, fullsize.BLANK, "?", longtail.make("TRIM"))
    assert isinstance(answer, Answer) and answer.tokens.generated == 128 and answer.finished == "length"
    ids, image = model.drawn.ids, model.model.config.image_token_id
    spots = (ids == image).nonzero().flatten()
    assert len(ids) == 13 + len(spots) == 13 + len(model.drawn.layout) and spots[0] == 6
    assert model.drawn.pixels.shape == (4, 3, 48, 48)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--random", "llava-9"), "--random takes one of llava-1.5-7b, llava-1.5-13b, llava-1.6-vicuna-7b"),
        (("--budget", "37"), "--budget must be between 1 and 36, the patches of a view, got 37"),
        (("--budget", "0"), "--budget must be between 1 and 36"),
        (("--random", "llava-1.5-7b", "--budget", "577"), "--budget must be between 1 and 576"),
        (("--view-shape", "big"), "--view-shape takes HEIGHTxWIDTH in pixels, such as 672x672, got 'big'"),
        (("--random", "tiny-llava-1.5", "--view-shape", "96x96"), "tiny-llava-1.5 sees one view"),
        (("--methods", "Nope"), "there is no method 'Nope'"),
        (("--text", "1"), "--text must be at least 2, got 1"),
        (("--repeat", "0"), "--repeat must be at least 1, got 0"),
        (("--time-limit", "0"), "--time-limit takes seconds above 0"),
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (("--dtype", "int3"), "dtype must be one of auto, float32"),
        (("--out", "bench.csv"), "--out takes a .json file or a folder, got 'bench.csv'"),
    ],
)
def test_bench_model_refuses_in_a_sentence(capsys, flags, sentence):
    status, out, err = said(capsys, *SMALL, *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


def test_what_does_not_fit_is_refused_before_it_is_built(capsys, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 10 * 2**30)
    monkeypatch.setattr(drawn, "untrained", lambda *_: pytest.fail("built"))
    status, out, err = said(capsys, *SMALL[:3], "llava-1.5-7b", "--dtype", "bfloat16", "--device", "cpu")
    assert status == 2 and out == "" and "needs 13.2 GiB of weights (arithmetic" in err and "10.0 GiB are free" in err
