"""The same seed, image and settings give the same tokens and the same kept sets: across processes and thread counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import longtail
from longtail import REDUCERS, make

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "assets" / "examples" / "place.png"
ASK = "What is on the left of it?"
WAYS = {"greedy": {}, "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 3}}
TOLD = ("answer", "keep", "source", "role", "order", "lost", "recycled", "finished")


def told(llava, names, new: int = 3) -> dict:
    """What each method makes of the picture, each way: token ids and all that tells which patches stayed."""
    made = {}
    for name in names:
        for way, options in WAYS.items():
            try:
                answer = longtail.answer(llava, PICTURE, ASK, make(name), max_new_tokens=new, **options)
                made[f"{name}, {way}"] = [list(answer.token_ids), *(answer.record()[key] for key in TOLD)]
            except ValueError as error:  # a text-guided method, where the model brings no CLIP
                made[f"{name}, {way}"] = str(error)
    return json.loads(json.dumps(made))


def elsewhere(place: str, threads: int, hashes: int, new: int = 3) -> subprocess.Popen:
    """The same in a process of its own."""
    environment = os.environ | {"PYTHONHASHSEED": str(hashes), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, place, str(threads), str(new)]
    return subprocess.Popen(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


def differing(mine: dict, process: subprocess.Popen) -> list[str]:
    """Methods that another process answered otherwise."""
    theirs = json.loads(process.communicate(timeout=300)[0].splitlines()[-1])
    return [name for name in mine if mine[name] != theirs[name]] + ["another list"] * (mine.keys() != theirs.keys())


def test_another_process_with_more_threads_says_the_same(clip_folder, folder):
    other = elsewhere(str(folder), 4, 7)
    mine = told(longtail.load(str(folder)), REDUCERS)
    assert len(mine) == 2 * len(REDUCERS) and differing(mine, other) == []


def test_every_way_of_asking_says_the_same(llava):
    """`answer`, `compare` and `preview`, with one thread and with two."""
    names = ("Full", "LongTail", "ToMe", "SparseVLM")
    reducers = [make(name) for name in names]
    for options in WAYS.values():
        options = options | {"max_new_tokens": 3}
        alone = [longtail.answer(llava, PICTURE, ASK, reducer, **options) for reducer in reducers]
        *_, beside = longtail.preview(llava, PICTURE, ASK, reducers, **options)
        torch.set_num_threads(2)
        try:
            compared = longtail.compare(llava, PICTURE, ASK, reducers, **options)
        finally:
            torch.set_num_threads(1)
        for others in (beside, compared):
            for one, other in zip(alone, others, strict=True):
                assert one.token_ids == other.token_ids, one.method
                assert one.record()["keep"] == other.record()["keep"], one.method


def soak() -> list[tuple[str, float, float, bool]]:
    """The long form: bundled and random model, every method, both ways, 1 to 4 threads: (name, figure, limit, ok)"""
    import tempfile

    from longtail.models import miniatures

    figures = []
    with tempfile.TemporaryDirectory() as place:
        miniatures.write("llava-1.5", place)
        miniatures.write_clip(place)
        for name in ("tiny", place):
            mine = told(longtail.load(name), REDUCERS, 16)
            for hashes, threads in enumerate((1, 2, 4)):
                wrong = len(differing(mine, elsewhere(name, threads, hashes, 16)))
                what = "bundled" if name == "tiny" else "random"
                figures.append((f"answers that differ, {what} model, {threads} threads", wrong, 0, wrong == 0))
    return figures


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(told(longtail.load(sys.argv[1]), REDUCERS, int(sys.argv[3]))))
