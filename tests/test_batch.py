"""Answers made together are those made alone: every method, both families, ragged prompts, halts, refusals."""

import json
import random
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import longtail
from longtail import REDUCERS, Reducer
from longtail.__main__ import main
from longtail.batch import Together
from longtail.bench import preview as together
from longtail.clock import Seconds
from longtail.evaluate import evaluate, grid
from longtail.examine import Log
from longtail.models import miniatures
from longtail.reducers.full import Full

FAMILIES = ("llava-1.5", "llava-1.6-vicuna")
QUESTIONS = ("What is it?", "Why?", "How many of them are there, and what stands to the left of the last one?")
NEW = 24


def drawn_image(seed: int, size: tuple[int, int]) -> Image.Image:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.rand(9, 12, 3, generator=draws).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


IMAGES = [drawn_image(1, (96, 72)), drawn_image(2, (40, 200)), drawn_image(3, (120, 120))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random model of each family, with a CLIP text tower."""
    made = {}
    for family in FAMILIES:
        place = tmp_path_factory.mktemp(family)
        miniatures.write(family, place)
        miniatures.write_clip(place)
        made[family] = longtail.load(str(place))
    return made


def at_nine(name: str) -> Reducer:
    """A method at a budget of nine patches of 36, where it has one."""
    try:
        return REDUCERS[name].at(9)
    except ValueError:
        return REDUCERS[name]()


def asked_of_all() -> list[tuple]:
    """Every method, about images and questions that take turns: no two neighbours have prompts of one length."""
    rows = [(IMAGES[i % 3], QUESTIONS[i // 3 % 3], at_nine(name)) for i, name in enumerate(REDUCERS)]
    random.Random(0).shuffle(rows)
    return rows


def told(answer) -> tuple:
    """All that an answer says, but for times and memory."""
    record = {k: v for k, v in answer.record().items() if k not in ("seconds", "memory", "shared", "reused")}
    return json.dumps(record), answer.token_ids


@pytest.fixture(scope="module")
def alone(models):
    """Each of `asked_of_all` on its own, by family."""
    return {
        family: [longtail.answer(llava, *row, max_new_tokens=NEW) for row in asked_of_all()]
        for family, llava in models.items()
    }


class Spy:
    """Counts what goes through a model: rows of the language model's matrices, pixels of the tower, attention."""

    def __init__(self, llava, monkeypatch):
        self.rows, self.tower, self.attended = [], [], []
        run, layer, attention = llava.vision.run, llava.decode_together, llava.attention

        def seen_run(pixels, *rest):
            self.tower.append(len(pixels))
            return run(pixels, *rest)

        def seen_layer(which, hidden, *rest):
            self.rows.append(len(hidden))
            return layer(which, hidden, *rest)

        def seen_attention(which, query, key, *rest):
            self.attended.append((query.shape[2], key.shape[2]))
            return attention(which, query, key, *rest)

        monkeypatch.setattr(llava.vision, "run", seen_run)
        monkeypatch.setattr(llava, "decode_together", seen_layer)
        monkeypatch.setattr(llava, "attention", seen_attention)


@dataclass(frozen=True)
class Refusing(Reducer):
    """Raises at one of its moments."""

    moment: str = longtail.param("reduce", help="at which")

    def active(self):
        return ("reduce", "drop", "evict")

    def reduce(self, visual):
        return self._unless("reduce", super().reduce(visual))

    def drop(self, prefill):
        return self._unless("drop" if prefill.layer == 2 else "", None)

    def evict(self, cache):
        return self._unless("evict" if cache.seen > cache.prompt + 3 else "", None)

    def _unless(self, moment, result):
        if moment == self.moment:
            raise ValueError(f"not at {moment}")
        return result


@dataclass(frozen=True)
class Leaking(Reducer):
    """Gives up five entries at every fourth pass, so that slots stay free between; the lowest score goes first."""

    def evict(self, cache):
        if cache.seen % 4 or cache.count < 12:
            return None
        return cache.lowest(5, (cache.position >= 0) & ~cache.recent(3))


@dataclass(frozen=True)
class Similar(Leaking):
    """Scored by the similarity of embeddings."""

    scores_with = "embeddings"


@dataclass(frozen=True)
class Attended(Leaking):
    """Scored by attention, head by head."""

    scores_with = "attention"


# ---- generate_batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [5, 64])
def test_every_method_says_what_it_says_alone(models, alone, family, batch):
    got = dict(longtail.generate_batch(models[family], asked_of_all(), NEW, batch=batch))
    assert sorted(got) == list(range(len(REDUCERS)))
    for at, one in enumerate(alone[family]):
        assert told(got[at]) == told(one), one.method
        assert torch.allclose(got[at].first_logits, one.first_logits, atol=1e-4 * one.first_logits.abs().max()), (
            one.method
        )
    assert {len(one.lost) > 0 for one in alone[family]} == {True, False} and any(one.recycled for one in alone[family])


def test_hard_pressed_caches(models):
    """Entries go all the time, several at once, in each head its own; free slots are seen by nobody."""
    llava = models["llava-1.5"]
    pressed = [Similar(), Attended(), longtail.make("H2O"), longtail.LongTail(heavy=0.1, recent=0.1)]
    rows = [(IMAGES[0], QUESTIONS[i], reducer) for i in range(2) for reducer in (*pressed, Full())]
    for at, answer in longtail.generate_batch(llava, rows, 60, batch=10):
        expected = longtail.answer(llava, *rows[at], max_new_tokens=60)
        assert told(answer) == told(expected), expected.method
        assert len(answer.lost) > 20 or answer.method in ("Full", "Attended", "H2O")


def test_in_any_order(models, alone):
    rows = list(enumerate(asked_of_all()))
    random.Random(7).shuffle(rows)
    for place, answer in longtail.generate_batch(models["llava-1.5"], (row for _, row in rows), NEW, batch=6):
        at = rows[place][0]
        assert told(answer) == told(alone["llava-1.5"][at])


def test_sampling_is_that_of_one_alone(models):
    llava, options = models["llava-1.5"], {"temperature": 0.9, "top_p": 0.8, "seed": 4, "max_new_tokens": NEW}
    rows = [(IMAGES[0], question, at_nine(name)) for question in QUESTIONS for name in ("Full", "LongTail", "H2O")]
    for at, answer in longtail.generate_batch(llava, rows, **options):
        assert told(answer) == told(longtail.answer(llava, *rows[at], **options))


def test_in_bfloat16(folder):
    """Same counts; same first logits where each prompt is read alone, near ones where they are read together."""
    llava, reducers = longtail.load(str(folder), dtype="bfloat16"), [Full(), at_nine("LongTail"), at_nine("FastV")]
    *_, side = longtail.preview(llava, IMAGES[0], "Why?", reducers, 8)
    batch = dict(longtail.generate_batch(llava, [(IMAGES[0], "Why?", reducer) for reducer in reducers], 8))
    for at, reducer in enumerate(reducers):
        one = longtail.answer(llava, IMAGES[0], "Why?", reducer, max_new_tokens=8)
        assert torch.equal(side[at].first_logits, one.first_logits) and side[at].token_ids[0] == one.token_ids[0]
        assert torch.allclose(batch[at].first_logits, one.first_logits, atol=0.05 * one.first_logits.abs().max())
        assert side[at].tokens.prompt == batch[at].tokens.prompt == one.tokens.prompt


def test_the_bundled_model(tiny):
    """A trained one, whose answers end by themselves, at different lengths."""
    image = "assets/examples/seven-objects.png"
    rows = [
        (image, question, REDUCERS[name]())
        for question in ("What is in the image?", "How many objects are there?")
        for name in ("LongTail", "FastV", "H2O")
    ]
    for at, answer in longtail.generate_batch(tiny, rows, 24):
        assert told(answer) == told(longtail.answer(tiny, *rows[at], max_new_tokens=24))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_padded(models, alone, family, monkeypatch):
    """At prefill and in decode alike: rows of the matrices over real positions, keys read over keys held, are 1."""
    llava = models[family]
    spy = Spy(llava, monkeypatch)
    rows, picked = asked_of_all(), alone[family]
    fixed = [at for at, (*_, reducer) in enumerate(rows) if not {"drop", "evict"} & set(reducer.active())]
    assert len({picked[at].tokens.prompt for at in fixed}) > 3  # ragged
    got = dict(longtail.generate_batch(llava, [rows[at] for at in fixed], NEW, batch=len(fixed)))
    layers = len(llava.decoder_layers)
    prompts = [answer.tokens.prompt for answer in got.values()]
    read = [prompt + answer.tokens.generated - 1 for prompt, answer in zip(prompts, got.values(), strict=True)]
    assert sum(spy.rows) == layers * sum(read)
    assert sum(spy.rows[:layers]) == layers * sum(prompts)  # one pass for all prompts
    assert len(spy.rows) == layers * max(answer.tokens.generated for answer in got.values())  # and one a token
    held = [prompt + n for prompt, last in zip(prompts, read, strict=True) for n in range(1, last - prompt + 1)]
    assert sum(keys for queries, keys in spy.attended if queries == 1) == layers * sum(held)
    assert sum(keys for queries, keys in spy.attended if queries > 1) == layers * sum(prompts)


def test_evicted_entries_are_read_by_nobody(models, monkeypatch):
    """A budget holds beside answers that grow: its cache is as long as it is alone."""
    llava, lengths = models["llava-1.5"], {}
    rows = [(IMAGES[0], QUESTIONS[0], at_nine(name)) for name in ("LongTail", "Full")]
    for name, chosen in (("both", rows), ("one", rows[:1])):
        spy = Spy(llava, monkeypatch)
        list(longtail.generate_batch(llava, chosen, NEW))
        lengths[name] = [keys for _, keys in spy.attended]
        monkeypatch.undo()
    both = lengths["both"]
    layers = len(llava.decoder_layers)
    assert both[0::2] == lengths["one"] and max(both[0::2]) < max(both[1::2]) and len(both) % layers == 0


def test_the_tower_sees_a_picture_once(models, monkeypatch):
    llava = models["llava-1.5"]
    spy = Spy(llava, monkeypatch)
    same = IMAGES[0].copy()
    rows = [(image, question, at_nine("TopK")) for image in (IMAGES[0], same, IMAGES[1]) for question in QUESTIONS]
    list(longtail.generate_batch(llava, rows, 3, batch=9))
    assert spy.tower == [2]
    list(longtail.generate_batch(llava, rows[:6], 3, batch=2))
    assert spy.tower == [2, 1]  # what came before is still there
    list(longtail.generate_batch(llava, [(*row[:2], at_nine("LongTail")) for row in rows[:1]] + rows[1:3], 3, batch=1))
    assert spy.tower[2:] == [1]  # its layers were captured for the first, and serve the others


def test_a_prompt_is_made_once_for_all_methods(models, monkeypatch):
    llava, made = models["llava-1.5"], []
    monkeypatch.setattr(llava, "text", lambda *asked, text=llava.text: made.append(asked[0]) or text(*asked))
    rows = [(IMAGES[0], question, at_nine(name)) for question in QUESTIONS[:2] for name in ("Full", "CDPruner", "H2O")]
    got = dict(longtail.generate_batch(llava, rows, 3))
    assert made == [*QUESTIONS[:2]] and len(got) == 6


def test_places_are_taken_again(models, monkeypatch):
    """Never more than `batch` in the making, and a finished one makes room before the others end."""
    llava, spy, begun = models["llava-1.5"], Spy(models["llava-1.5"], monkeypatch), []

    def asked():
        for i in range(9):
            begun.append(i)
            yield IMAGES[i % 3], QUESTIONS[i % 3], at_nine("TopK")

    ended = []
    for at, _ in longtail.generate_batch(llava, asked(), 6, batch=4):
        ended.append(at)
        assert len(begun) - len(ended) <= 4
    assert sorted(ended) == list(range(9)) and len(begun) == 9
    decoded = [rows for rows in spy.rows if rows < 30]
    assert max(decoded) <= 4


# ---- what cannot run


@pytest.mark.parametrize("moment", ["reduce", "drop", "evict"])
def test_a_refusal_is_its_own(models, alone, moment):
    llava, rows, expected = models["llava-1.5"], asked_of_all()[:6], alone["llava-1.5"][:6]
    rows.insert(2, (IMAGES[0], QUESTIONS[0], Refusing(moment)))
    got = dict(longtail.generate_batch(llava, rows, NEW, batch=7))
    assert got.pop(2) == f"not at {moment}"
    assert [told(got[at]) for at in sorted(got)] == [told(one) for one in expected]
    *_, last = longtail.preview(llava, IMAGES[0], QUESTIONS[0], [Full(), Refusing(moment), at_nine("TopK")], NEW)
    assert last[1] == f"not at {moment}" and [one.text for one in (last[0], last[2])] == [
        longtail.answer(llava, IMAGES[0], QUESTIONS[0], one, max_new_tokens=NEW).text
        for one in (Full(), at_nine("TopK"))
    ]


def test_refusals_of_image_question_and_room(models):
    rows = [
        ("nowhere.png", "?", Full()),
        (IMAGES[0], " ", Full()),
        (IMAGES[0], "long " * 500, Full()),
        (IMAGES[0], "?", Full()),
        (IMAGES[0], "", at_nine("ToMe")),
    ]
    got = dict(longtail.generate_batch(models["llava-1.5"], rows, 3))
    for at, (image, question, reducer) in enumerate(rows):
        try:
            alone = longtail.answer(models["llava-1.5"], image, question, reducer, max_new_tokens=3)
        except ValueError as reason:
            assert got[at] == str(reason)
        else:
            assert told(got[at]) == told(alone)
    assert [isinstance(got[at], str) for at in range(5)] == [True, True, True, False, True]
    assert "positions of" in got[2]


def test_options_that_cannot_be_used(models):
    llava = models["llava-1.5"]
    for options, sentence in (
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": 9}, "temperature must be between 0 and 5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            list(longtail.generate_batch(llava, [], **options))
    for image, question, reducer in ((IMAGES[0], "", "Full"), ("nowhere.png", "?", "Full"), (IMAGES[0], "", "ToMe")):
        with pytest.raises(ValueError, match=r"empty|nowhere\.png"):
            next(longtail.preview(llava, image, question, [at_nine(reducer)]))
    assert list(longtail.generate_batch(llava, [])) == [] and list(longtail.preview(llava, IMAGES[0], "?", [])) == []


# ---- stop, and the time limit


def test_stop_ends_all_and_takes_up_no_more(models):
    llava, stop, begun = models["llava-1.5"], threading.Event(), []

    def asked():
        for i in range(8):
            begun.append(i)
            yield IMAGES[0], QUESTIONS[i % 2], Refusing() if i == 1 else at_nine("TopK")

    answers = longtail.generate_batch(llava, asked(), NEW, stop=stop, batch=4)
    assert next(answers) == (1, "not at reduce")
    stop.set()
    rest = dict(answers)
    assert (
        begun == [0, 1, 2, 3] and {one.finished for one in rest.values()} == {"stopped"} and sorted(rest) == [0, 2, 3]
    )
    for at, one in rest.items():
        full = longtail.answer(llava, IMAGES[0], QUESTIONS[at % 2], at_nine("TopK"), max_new_tokens=NEW)
        assert 0 < len(one.token_ids) < NEW and full.token_ids[: len(one.token_ids)] == one.token_ids


def test_the_time_limit(models, monkeypatch):
    """Seconds since an answer was taken up: those taken up later have theirs whole."""
    llava, now = models["llava-1.5"], [0.0]
    monkeypatch.setattr("longtail.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    step = llava.logits

    def slow(hidden):
        now[0] += 1.0
        return step(hidden)

    monkeypatch.setattr(llava, "logits", slow)
    rows = [(IMAGES[0], question, at_nine("TopK")) for question in (*QUESTIONS, *QUESTIONS)]
    lengths = {}
    for at, answer in longtail.generate_batch(llava, rows, NEW, batch=3, time_limit=7.5):
        assert answer.finished == "time"
        lengths[at] = len(answer.token_ids)
        now[0] += 100.0  # the reader's time is not ours
    assert lengths == dict.fromkeys(range(6), 6)  # three prompts read, five steps, and the limit is past
    *_, last = longtail.preview(llava, IMAGES[0], "Why?", [Full(), at_nine("TopK")], NEW, time_limit=4.5)
    assert [(one.finished, len(one.token_ids)) for one in last] == [("time", 4), ("time", 4)]


@pytest.mark.parametrize("name", ["TopK", "ToMe", "FastV"])
def test_halted_before_anything(models, name):
    stop = threading.Event()
    stop.set()
    *_, last = longtail.preview(models["llava-1.5"], IMAGES[0], "Why?", [at_nine(name), Full()], stop=stop)
    assert [(one.finished, one.text, one.tokens.generated) for one in last] == [("stopped", "", 0)] * 2
    assert list(longtail.generate_batch(models["llava-1.5"], [(IMAGES[0], "Why?", Full())], stop=stop)) == []
    (_, one), *_ = longtail.generate_batch(models["llava-1.5"], [(IMAGES[0], "Why?", at_nine(name))], time_limit=0)
    assert one.finished == "time" and one.token_ids == () and one.shared


# ---- preview


@pytest.mark.parametrize("family", FAMILIES)
def test_preview_is_every_method_beside_each_other(models, family):
    llava, reducers = models[family], [at_nine(name) for name in REDUCERS]
    seen = list(longtail.preview(llava, IMAGES[0], QUESTIONS[0], reducers, NEW, preface="Look."))
    for reducer, one in zip(reducers, seen[-1], strict=True):
        expected = longtail.answer(llava, IMAGES[0], QUESTIONS[0], reducer, max_new_tokens=NEW, preface="Look.")
        assert told(one) == told(expected), expected.method
        assert torch.equal(one.first_logits, expected.first_logits)
    for i, said in enumerate(seen[: len(reducers)]):  # first each one's first token
        assert [one and len(one.token_ids) for one in said] == [1] * (i + 1) + [None] * (len(reducers) - i - 1)
    longest = max(len(one.token_ids) for one in seen[-1])
    assert len(seen) == len(reducers) + longest - 1
    for before, after in zip(seen[len(reducers) :], seen[len(reducers) + 1 :], strict=False):
        assert all(after[i].text.startswith(one.text) or not one.finished for i, one in enumerate(before))


def test_preview_runs_the_tower_once_for_all_outside_it(models, monkeypatch):
    llava = models["llava-1.5"]
    spy = Spy(llava, monkeypatch)
    names = ("Full", "LongTail", "TopK", "VisionZip", "FastV")
    *_, last = longtail.preview(llava, IMAGES[0], "Why?", [at_nine(name) for name in names], 8)
    assert spy.tower == [1] and len(last) == 5
    steps = max(len(one.token_ids) for one in last) - 1
    assert len(spy.rows) == steps * len(llava.decoder_layers) and spy.rows[0] == 5  # each prompt was read alone
    *_, again = longtail.preview(llava, IMAGES[0], "What?", [Full()], 8, history=last[0].turns, seen=last[0].seen)
    assert spy.tower == [1] and again[0].history == last[0].turns and again[0].reused == ("vision",)


def test_no_time_of_it_is_a_latency(models):
    llava = models["llava-1.5"]
    *_, (one,) = longtail.preview(llava, IMAGES[0], "Why?", [Full()], 3)
    ((_, other),) = longtail.generate_batch(llava, [(IMAGES[0], "Why?", Full())], 3)
    plain = longtail.answer(llava, IMAGES[0], "Why?", Full(), max_new_tokens=3)
    assert one.shared and other.shared and not plain.shared
    assert one.seconds == other.seconds == Seconds() and set(one.record()["seconds"].values()) == {0.0}
    assert one.record()["shared"] is True and "shared" not in plain.record()


def test_one_clock_for_all():
    clock = Together(torch.device("cpu"), limit=1e9)
    for name in ("vision", "prefill", "decode", "work"):
        clock.lap(name)
    assert clock.halted() is None
    clock.limit = 0
    assert clock.halted() == "time" and clock.seconds() == Seconds()


# ---- commands


def test_compare_preview(folder, capsys, tmp_path):
    IMAGES[0].save(image := str(tmp_path / "image.png"))
    flags = [
        "compare",
        image,
        "Why?",
        "--model",
        str(folder),
        "--methods",
        "Full,TopK,CDPruner",
        "--max-new-tokens",
        "5",
    ]
    flags += ["--budget", "9", "--preview"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "TopK: " in printed and "9 of 36 visual tokens" in printed and "KV entries" in printed
    assert " ms" not in printed and "none of their times would be a latency" in printed
    assert main([*flags, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in record["answers"]] == ["Full", "TopK", "CDPruner"]
    assert record["answers"][0]["shared"] is True and set(record["answers"][0]["seconds"].values()) == {0.0}
    for more in (["--repeat", "2"], ["--then", "And?"], ["--out", "a.json"]):
        assert main([*flags, *more]) == 2
        assert "--preview asks one question once and times nothing" in capsys.readouterr().err


def test_evaluate_in_batches(llava, tmp_path, monkeypatch):
    """The same rows but for their times, which there are none of; and a log that either way goes on from."""
    monkeypatch.setattr("longtail.examine.LONGEST", 12)
    cells = grid("Full,LongTail,Random,FastV,CDPruner,Oracle", "9,4")  # CDPruner: there is no CLIP text tower
    asked = (llava, cells, range(1010000, 1010002), ("exist", "color"))
    plain, batched = evaluate(*asked), evaluate(*asked, Log(tmp_path / "log.jsonl"), batch=8)
    timed = ("first_token", "total", "of_full")
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in record["rows"]] for record in (plain, batched)]
    assert rows[0] == rows[1] and {"reason" in row for row in rows[0]} == {True, False}
    assert {row[name] for row in batched["rows"] if "reason" not in row for name in timed} == {None}
    assert (
        "8 answers at a time, which have no times" in batched["timed"][0] and "each then waits" in batched["conditions"]
    )
    again = evaluate(*asked, Log(tmp_path / "log.jsonl"))
    assert [row for row in again["rows"] if "reason" not in row] == [r for r in batched["rows"] if "reason" not in r]


def test_evaluate_batch_command(folder, capsys, tmp_path):
    flags = ["evaluate", "--model", str(folder), "--methods", "Full,TopK", "--budgets", "9", "--scenes", "1"]
    flags += ["--families", "exist", "--batch", "4", "--out", str(out := tmp_path / "rows.json")]
    assert main(flags) == 0
    assert "| TopK | 9 | 9 |" in capsys.readouterr().out
    for more, sentence in (
        (["--figure", "a.svg"], "--figure draws times, and --batch leaves none"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
    ):
        assert main([*flags, *more]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"rows\.0\.first_token, .*with times: without --batch"):
        longtail.results.read(out)
    with pytest.raises(ValueError, match="evaluate them without --batch"):
        longtail.pareto.svg(json.loads(out.read_text()))


def test_bench_preview(capsys, tmp_path):
    flags = ["bench", "preview", "--random", "tiny-llava-1.5", "--budget", "9", "--new", "3", "--repeat", "2"]
    flags += ["--methods", "Full,TopK,LongTail:heavy=0.2,H2O", "--text", "12", "--device", "cpu"]
    assert main([*flags, "--out", str(out := tmp_path / "preview.json")]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert json.loads(out.read_text()) == record and [row["tokens"] for row in record["rows"]] == [3] * 4
    assert record["preview"]["ms"] >= record["preview"]["best_ms"] > 0 and record["of_all"]["ratio"] > 0
    low, high = record["of_one"]["ratio_95"]
    here, elsewhere = record["goals"]
    assert low <= record["of_one"]["ratio"] == here["measured"] <= high and here["most"] == 2.5
    assert elsewhere["verdict"] == "not run here: needs a CUDA device" and elsewhere["most"] == 1.6
    assert any(line.startswith("together / Full: ") for line in table) and any("random weights" in row for row in table)
    assert main([*flags, "--repeat", "0"]) == 2
    assert "--repeat must be at least 1, got 0" in capsys.readouterr().err


def test_bench_preview_of_what_is_not_the_same(models, monkeypatch):
    monkeypatch.setattr(together, "preview", lambda *asked: longtail.preview(*asked[:4], asked[4] - 1))
    with pytest.raises(ValueError, match=r"together the answers have \[3\] tokens, alone \[4\]"):
        together.counted(together.forms(models["llava-1.5"], IMAGES[0], "Why?", {"Full": Full()}, 4))
