"""The patches of your choice: text, indices or a mask, kept exactly, in raster order."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch

import longtail
from longtail.__main__ import main
from longtail.given import shown
from longtail.reducer import make

MASK = [p in (0, 1, 2, 7, 30) for p in range(36)]
CHOSEN = [0, 1, 2, 7, 30]
WRONG = r"^Manual\.patches must be indices and ranges such as 0-23, 40, or a mask, got "


def kept(visual, patches, **size):
    reduced = make("Manual", patches=patches).reduce(visual(0, **size))
    n = len(reduced.source)
    keep = reduced.keep.tolist()
    assert torch.equal(reduced.features, visual(0, **size).features[reduced.keep])
    assert reduced.source.tolist() == [keep.index(p) if p in keep else -1 for p in range(n)]
    assert reduced.role.tolist() == ["kept" if p in keep else "dropped" for p in range(n)]
    return keep


@pytest.mark.parametrize(
    "patches",
    [
        "0-2,7,30",
        "0-2, 7, 30",
        " 30 ,7,0 - 2\n",
        "30,7,2,1,0",
        "0-1,1-2,7-7,30,30",
        "0,1,2,,7,30,",
        "".join("01"[kept] for kept in MASK),
        "\n".join("".join("01"[kept] for kept in MASK[row : row + 6]) for row in range(0, 36, 6)),
        [30, 7, 0, 1, 2],
        (0, 1, 2, 7, 30, 30),
        {0, 1, 2, 7, 30},
        np.array(CHOSEN),
        list(np.array(CHOSEN)),
        torch.tensor(CHOSEN),
        MASK,
        np.array(MASK),
        np.array(MASK).reshape(6, 6),
        np.array(MASK).reshape(1, 6, 6, 1),
        torch.tensor(MASK),
        torch.tensor(MASK).view(6, 6),
        torch.tensor(MASK).view(4, 3, 3),
        [MASK[row : row + 6] for row in range(0, 36, 6)],
    ],
    ids=lambda patches: f"{type(patches).__name__}{'x'.join(map(str, getattr(patches, 'shape', ())))}",
)
def test_the_same_patches_in_every_way(visual, patches):
    assert kept(visual, patches) == CHOSEN
    params = json.loads(json.dumps(dataclasses.asdict(make("Manual", patches=patches))))
    assert make("Manual", **params) == make("Manual", patches=patches)
    assert kept(visual, **params) == CHOSEN
    if not isinstance(patches, str):
        assert params == {"patches": "0-2,7,30"}


def test_nothing_given_keeps_every_patch(visual):
    for reducer in (make("Manual"), make("Manual", patches=""), make("Manual", patches=[])):
        assert reducer.reduce(visual(0)).keep.tolist() == list(range(36))
    assert kept(visual, "0-35") == list(range(36))
    assert kept(visual, range(4)) == [0, 1, 2, 3]


def test_ends_are_included_and_one_patch_is_enough(visual):
    assert kept(visual, "35") == [35]
    assert kept(visual, "4-4") == [4]
    assert kept(visual, "33-35,0") == [0, 33, 34, 35]
    assert kept(visual, "0", rows=1, columns=1) == [0]
    assert kept(visual, "1", rows=1, columns=2) == [1]  # an index: masks of so few patches are not read from text


def test_a_short_row_of_zeros_and_ones_is_a_mask_where_it_fits(visual):
    assert kept(visual, "0110", rows=2, columns=2) == [1, 2]
    assert kept(visual, "11", rows=3, columns=6) == [11]
    with pytest.raises(ValueError, match=r"^Manual\.patches names patch 110, but this image has 36: 0 to 35$"):
        kept(visual, "0110")


@pytest.mark.parametrize(
    "patches",
    [
        "x", "-1", "3-", "-3", "5-2", "1-2-3", "0x10", "1.5", "1;2", "0..4", "1 2", "0-3 5-7", "7" * 7, "9" * 5000,
        "0-9999999", None, 3, 3.5, True, float("nan"), {"0": 1}, b"0-3", object, [-1], [1.0], [0, True], ["3"], [None],
        np.zeros((6, 6), dtype=bool), [False] * 36, torch.arange(36) / 36,
    ],
    ids=lambda patches: repr(patches)[:20].replace("\n", ""),
)  # fmt: skip
def test_what_it_cannot_read_is_refused_at_once(patches):
    with pytest.raises(ValueError, match=WRONG) as error:
        make("Manual", patches=patches)
    assert str(error.value).endswith(f"got {shown(patches)}") and len(str(error.value)) < 150


def test_patches_the_image_does_not_have_are_refused_by_name(visual):
    for patches in ("36", "0-36", "3,36,5", np.array([36]), "30-36,1"):
        with pytest.raises(ValueError, match=r"^Manual\.patches names patch 36, but this image has 36: 0 to 35$"):
            kept(visual, patches)


def test_a_mask_of_another_image_is_refused(visual):
    for mask, shape in (("1" * 35, "35 of 35"), ("01" * 20, "20 of 40"), ("0" * 36, "0 of 36"), ("1" * 5000, "5000")):
        with pytest.raises(ValueError, match=rf"^Manual\.patches marks {shape}.* patches, but this image has 36: "):
            kept(visual, mask)


def test_an_enormous_range_costs_nothing(visual):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="names patch 999999"):
        kept(visual, ",".join(["0-999999"] * 1000))
    assert time.perf_counter() - start < 2


def test_at_a_budget_it_takes_the_first(visual):
    for budget in (1, 7, 36):
        assert longtail.REDUCERS["Manual"].at(budget).reduce(visual(0)).keep.tolist() == list(range(budget))
    with pytest.raises(ValueError, match=r"^Manual.*at least 1, got 0$"):
        longtail.REDUCERS["Manual"].at(0)


# ---- from image to answer


@pytest.fixture
def photo(picture, tmp_path):
    picture.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_the_answer_reads_those_patches_alone(llava, picture):
    record = longtail.answer(llava, picture, "What is here?", make("Manual", patches=MASK), max_new_tokens=4).record()
    assert record["keep"] == CHOSEN and record["tokens"]["visual"] == 5
    again = longtail.answer(llava, picture, "What is here?", make("Manual", **record["params"]), max_new_tokens=4)
    assert again.record()["answer"] == record["answer"] and again.record()["params"] == record["params"]
    full = longtail.answer(llava, picture, "What is here?", max_new_tokens=4)
    same = longtail.answer(llava, picture, "What is here?", make("Manual"), max_new_tokens=4)
    assert torch.equal(full.first_logits, same.first_logits)


def test_command_line(photo, folder, capsys):
    ask = ["answer", photo, "What is here?", "--model", str(folder), "--max-new-tokens", "2", "--method", "Manual"]
    assert main([*ask, "--json", "--patches", "0-23,30"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["keep"] == [*range(24), 30] and record["method"] == "Manual"
    assert record["params"] == {"patches": "0-23,30"} and record["role"].count("dropped") == 11
    assert main([*ask, "--patches", "0-23,x"]) == 2
    out, err = capsys.readouterr()
    wrong = "longtail: Manual.patches must be indices and ranges such as 0-23, 40, or a mask, got '0-23,x'\n"
    assert out == "" and err == wrong
    assert main([*ask, "--patches", "0-23,40"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "longtail: Manual.patches names patch 40, but this image has 36: 0 to 35\n"
    compare = [
        "compare",
        photo,
        "What is here?",
        "--model",
        str(folder),
        "--max-new-tokens",
        "2",
        "--methods",
        "Manual",
    ]
    assert main([*compare, "--json", "--set", "Manual.patches=3,5-6"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["keep"] == [3, 5, 6]
