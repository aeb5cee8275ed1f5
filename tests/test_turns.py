"""Follow-ups: earlier turns stand in the prompt as the chat template puts them; what is taken over changes nothing."""

import dataclasses
import json

import pytest
import torch
from PIL import ImageOps

import longtail
from longtail.__main__ import main
from longtail.reducer import REDUCERS, make
from longtail.tiny.examine import FINAL_SEED
from longtail.tiny.questions import SHORT, questions, score
from longtail.tiny.scenes import scene

TURNS = (("What is here?", "A red square."), ("And below it?", "Nothing."))
ASK = "Where is it?"
EACH = pytest.mark.parametrize("name", list(REDUCERS))


@pytest.fixture(scope="module")
def clever(clip_folder, folder):
    """The random tiny model, with CLIP's text tower."""
    return longtail.load(str(folder))


@pytest.fixture
def towers(monkeypatch):
    """One entry for each run of the vision tower."""
    runs, encode = [], longtail.models.llava.Llava.encode
    monkeypatch.setattr(
        longtail.models.llava.Llava, "encode", lambda self, *a, **k: runs.append(1) or encode(self, *a, **k)
    )
    return runs


def stock(llava, picture, history, question):
    """What transformers makes of the same conversation."""
    messages = []
    for asked, said in (*history, (question, None)):
        messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    messages[0]["content"].insert(0, {"type": "image"})
    text = llava.processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
    return llava.processor(images=picture, text=text, return_tensors="pt")


def follow(llava, picture, first, **options):
    """The follow-up of an answer, by the same method."""
    return longtail.answer(
        llava, picture, ASK, first.reducer, history=first.turns, **{"max_new_tokens": 6, "seen": first.seen, **options}
    )


# ---- the prompt


@pytest.mark.parametrize("model", ["llava", "tiny"])
def test_full_after_earlier_turns_says_what_stock_generate_says(model, picture, request):
    model = request.getfixturevalue(model)
    inputs = stock(model, picture, TURNS, ASK)
    with torch.inference_mode():
        expected = model.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        logits = model.model(**inputs, logits_to_keep=1).logits[0, -1]
    answer = longtail.answer(model, picture, ASK, longtail.Full(), max_new_tokens=20, history=TURNS)
    assert list(answer.token_ids) == expected[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.tokens.prompt == inputs["input_ids"].shape[1]
    torch.testing.assert_close(answer.first_logits, logits, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_prompt_is_the_chat_templates(llava, picture):
    prompt = llava.prompt(picture, ASK, TURNS)
    assert torch.equal(prompt.ids, stock(llava, picture, TURNS, ASK)["input_ids"][0])
    assert torch.equal(prompt.question.ids, llava.prompt(picture, ASK).question.ids)  # the new question alone
    assert torch.equal(llava.prompt(picture, ASK, ()).ids, llava.prompt(picture, ASK).ids)
    assert torch.equal(llava.prompt(picture, ASK, [list(turn) for turn in TURNS]).ids, prompt.ids)  # as JSON brings it


@torch.inference_mode()
def test_special_tokens_in_earlier_turns_are_text(llava, picture):
    ids = llava.prompt(picture, "a<s>", (("b<image>", "c</s><image>"), ("d<pad>", "e<unk>"))).ids.tolist()
    start = ids.index(4)
    assert ids[start : start + 36] == [4] * 36 and ids.count(4) == 36
    assert not {0, 1, 2, 3} & set(ids[start + 36 :])


@pytest.mark.parametrize(
    "question, history, sentence",
    [
        (
            "?" * 3000,
            (("a" * 600, "b" * 600),),
            r"what was said before it have 4,200 characters, at most 4,000 are read: ask with",
        ),
        ("?" * 4001, (), r"the question has 4,001 characters, at most 4,000 are read"),
        (ASK, ((" ", "Yes."),), "the question is empty"),
        ("", TURNS, "the question is empty"),
        (ASK, ("ab",), "pairs of a question and its answer, got 'ab'"),
        (ASK, (("a", "b", "c"),), r"pairs of a question and its answer, got \('a', 'b', 'c'\)"),
        (ASK, (("a", None),), "pairs of a question and its answer"),
        (ASK, (("a" * 400, "b" * 90),), "positions of .*: ask with fewer turns before it or lower max_new_tokens"),
    ],
)
def test_what_cannot_be_asked(llava, picture, question, history, sentence):
    with pytest.raises(ValueError, match=sentence):
        longtail.answer(llava, picture, question, max_new_tokens=8, history=history)


# ---- what is taken over


@EACH
def test_what_is_taken_over_changes_nothing(name, clever, picture, towers):
    """Bit for bit, for every method; the time of the tower is not told again."""
    first = longtail.answer(clever, picture, "What is here?", make(name), max_new_tokens=4)
    anew, again = follow(clever, picture, first, seen=None), follow(clever, picture, first)
    assert len(towers) == 2 and (first.reused, anew.reused, again.reused) == ((), (), ("vision",))
    assert torch.equal(again.first_logits, anew.first_logits)
    assert again.token_ids == anew.token_ids and again.tokens == anew.tokens and again.lost == anew.lost
    told = [{k: v for k, v in a.record().items() if k not in ("seconds", "memory", "reused")} for a in (anew, again)]
    assert json.dumps(told[0]) == json.dumps(told[1])
    assert again.seconds.vision == 0 < anew.seconds.vision
    parts = again.seconds.preprocess + again.seconds.method + again.seconds.prefill
    assert again.seconds.first_token == pytest.approx(parts)


@pytest.mark.parametrize("name", ["TRIM", "CDPruner", "Recoverable"])
def test_a_text_guided_method_reads_the_new_question(name, clever, picture):
    first = longtail.answer(clever, picture, "What is here?", make(name), max_new_tokens=2)
    again = follow(clever, picture, first)
    alone = longtail.answer(clever, picture, ASK, make(name), max_new_tokens=1)
    with torch.inference_mode():
        assert torch.equal(again.visual[0].relevance(), alone.visual[0].relevance())
        assert not torch.equal(again.visual[0].relevance(), first.visual[0].relevance())
    assert torch.equal(again.reduced[0].features, alone.reduced[0].features)


def test_a_third_question_takes_over_from_the_second(llava, picture, towers):
    first = longtail.answer(llava, picture, "What is here?", max_new_tokens=4)
    second = follow(llava, picture, first)
    third = follow(llava, picture, second)
    assert len(towers) == 1 and third.reused == ("vision",)
    assert third.history == (("What is here?", first.text), (ASK, second.text))
    record = json.loads(json.dumps(third.record()))
    assert record["history"] == [list(turn) for turn in third.history] and record["reused"] == ["vision"]
    assert "seen" not in record and first.record()["history"] == first.record()["reused"] == []


def changed(picture):
    """One pixel of another colour, in the middle."""
    other = picture.copy()
    other.putpixel((48, 36), (255, 0, 255))
    return other


def test_the_tower_runs_again_where_it_must(llava, folder, picture, towers):
    topk, tome = longtail.TopK(budget=9), make("ToMe")
    seen = {r: longtail.answer(llava, picture, "What is here?", r, max_new_tokens=1).seen for r in (topk, tome)}
    again = longtail.load(str(folder))
    for model, image, reducer, before in [
        (llava, changed(picture), topk, topk),
        (llava, ImageOps.mirror(picture), topk, topk),
        (again, picture, topk, topk),
        (llava, picture, longtail.TopK(budget=9, layer=9), topk),  # a layer that was not captured
        (llava, picture, tome, topk),
        (llava, picture, topk, tome),
        (llava, picture, make("ToMe", r=3), tome),
    ]:
        runs = len(towers)
        options = {"max_new_tokens": 3, "history": TURNS}
        answer = longtail.answer(model, image, ASK, reducer, seen=seen[before], **options)
        assert len(towers) == runs + 1 and answer.reused == () and answer.seconds.vision > 0
        anew = longtail.answer(model, image, ASK, reducer, **options)
        assert torch.equal(answer.first_logits, anew.first_logits)
    runs = len(towers)
    same = {"max_new_tokens": 1, "seen": seen[topk]}
    assert longtail.answer(llava, picture, ASK, longtail.TopK(budget=20), **same).reused == ("vision",)
    assert longtail.answer(llava, picture, ASK, longtail.Full(), **same).reused == ("vision",)
    assert len(towers) == runs


def test_compare_takes_over_for_all_it_may(llava, picture, towers):
    reducers = [longtail.Full(), longtail.TopK(budget=9), make("ToMe")]
    first = longtail.compare(llava, picture, "What is here?", reducers, max_new_tokens=3)
    assert len(towers) == 2 and first[0].seconds.vision == first[1].seconds.vision > 0
    options = {"max_new_tokens": 3, "history": TURNS}
    again = longtail.compare(llava, picture, ASK, reducers, seen=first[0].seen, **options)
    assert len(towers) == 3 and [a.reused for a in again] == [("vision",), ("vision",), ()]
    assert again[0].seconds.vision == again[1].seconds.vision == 0 < again[2].seconds.vision
    for reducer, answer in zip(reducers, again, strict=True):
        alone = longtail.answer(llava, picture, ASK, reducer, **options)
        assert torch.equal(alone.first_logits, answer.first_logits) and answer.history == TURNS


def test_an_answer_halted_in_the_tower_hands_nothing_on(llava, picture):
    halted = longtail.answer(llava, picture, ASK, time_limit=1e-9)
    assert halted.seen is None and halted.reused == () and halted.finished == "time"
    assert follow(llava, picture, halted).reused == ()


def test_stopped_before_the_first_word_is_a_turn_all_the_same(llava, picture):
    first = dataclasses.replace(longtail.answer(llava, picture, "What is here?", max_new_tokens=1), text="")
    assert follow(llava, picture, first).history == (("What is here?", ""),)


# ---- the miniature


def test_the_miniature_is_declared_single_turn_and_is(tiny, llava):
    """Answers fall apart behind another question, so the declaration in its config is deserved."""
    assert tiny.single_turn and not llava.single_turn
    alone, behind = [], []
    for seed in (FINAL_SEED, FINAL_SEED + 1):
        shown, before = scene(seed), None
        for question in questions(shown):
            if question.family not in SHORT:
                continue
            seen = before and before.seen
            said = longtail.answer(tiny, shown.image, question.text, seen=seen, max_new_tokens=12)
            if before:
                options = {"history": before.turns, "seen": seen, "max_new_tokens": 12}
                after = longtail.answer(tiny, shown.image, question.text, **options)
                alone.append(score(question.family, said.text, question.answer))
                behind.append(score(question.family, after.text, question.answer))
            before = said
    assert sum(alone) / len(alone) > 0.9 and sum(behind) / len(behind) < 0.6


def test_its_config_is_the_one_that_training_writes(tmp_path, tiny):
    from longtail.tiny.model import llava_config

    llava_config().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["single_turn"] is tiny.model.config.single_turn is True


# ---- the command line


def test_then_asks_follow_ups(folder, picture, tmp_path, capsys, towers):
    picture.save(tmp_path / "photo.png")
    ask = ["answer", str(tmp_path / "photo.png"), "What is here?", "--max-new-tokens", "3"]
    then = ["--then", "And below it?", "--then", ASK]
    assert main([*ask, *then, "--model", str(folder), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(towers) == 1 and [r["reused"] for r in records] == [[], ["vision"], ["vision"]]
    assert [r["question"] for r in records] == ["What is here?", "And below it?", ASK]
    assert records[2]["history"] == [[r["question"], r["answer"]] for r in records[:2]]
    assert main([*ask, *then, "--model", str(folder)]) == 0
    words = capsys.readouterr().out
    assert words.count("vision reused") == 2 and f"> {ASK}\n" in words and "on its own" not in words
    assert main([*ask, "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["history"] == []  # a record, no list
    assert main([*ask, "--then", " ", "--model", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "the question is empty" in err


def test_then_compares_the_last_answers(folder, picture, tmp_path, capsys, towers):
    picture.save(tmp_path / "photo.png")
    ask = ["compare", str(tmp_path / "photo.png"), "What is here?", "--max-new-tokens", "3", "--model", str(folder)]
    assert main([*ask, "--methods", "Full,TopK", "--then", ASK, "--json"]) == 0
    full, ours = json.loads(capsys.readouterr().out)["answers"]
    assert len(towers) == 3, "to warm up, and once for each method"
    for record in (full, ours):
        (asked, said), *more = record["history"]
        assert (asked, more, record["question"], record["reused"]) == ("What is here?", [], ASK, ["vision"]) and said
    assert ours["versus"]["agreement"] <= 1


def test_then_asks_the_miniature_on_its_own(picture, tmp_path, capsys):
    picture.save(tmp_path / "photo.png")
    ask = ["answer", str(tmp_path / "photo.png"), "What is here?", "--then", ASK, "--max-new-tokens", "2"]
    assert main([*ask, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)[1]
    assert second["history"] == [] and second["reused"] == ["vision"]
    assert main(ask) == 0
    assert "asked on its own: tiny was trained on one question a prompt" in capsys.readouterr().out
