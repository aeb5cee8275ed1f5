# ruff: noqa: E501 (lines of Markdown)
"""The model card: what the miniature is, how it came about and what was measured, all figures from the measurements."""

from pathlib import Path

from .examine import CHOOSERS, FINAL_SEED, RANKS, READ_LAYERS, SHARES
from .questions import SHORT
from .train import DEV_SCENES, STAGES, read_log
from .world import GRID, HELD_OUT_PAIRS, HELD_OUT_SEED, MOST_ITEMS

ALL = GRID * GRID
TARGETS = {"mean": 0.96, **{family: 0.90 for family in SHORT}}
VISIBLE = 0.02  # a gap between two means that a reader would notice
NAMES = {"cls": "TopK by CLS", "random": "random", "grid": "grid", "oracle": "item patches first"}


def write(folder: Path, found: dict) -> None:
    """`found` holds `progress`, `table`, `generate`, `curves`, `phrases`, `scenes`, as `export` measured them."""
    log, notes = read_log(folder / "training.jsonl")
    parts = [
        HEAD,
        _training(found, notes),
        _answers(found),
        _missed(found),
        _pruned(found),
        _looks(found),
        _learning(log),
        LIMITS,
    ]
    (folder / "README.md").write_text("\n".join(parts))


HEAD = f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# LongTail miniature

A LLaVA of six million parameters, small enough to live in a git repository and real enough to prune: a CLIP vision
tower (192 px, patches of 8 px, {ALL} visual tokens, CLS), a two-layer projector and a Llama, in transformers' own
classes. It was trained from nothing by `python -m longtail tiny train` on pictures that `longtail/tiny/scenes.py` draws.
`clip/` holds a CLIP text tower trained beside it, with `visual_projection.weight` laid out as in OpenAI's CLIP.

**What it shows and what it does not.** The pictures are coloured shapes and short strings; nothing else is understood.
Where CLS looks was taught: a bottom-up saliency that puts large vivid things first and lets rough ground compete with
letters. So a curve drawn on this model illustrates a method; it is no evidence for the method on a real LLaVA.
"""

LIMITS = f"""
## Limits

- Only the templates of `longtail/tiny/questions.py`, in English; any other question gets an arbitrary answer.
- One question a prompt: behind an earlier turn it mostly repeats that turn's answer. `single_turn` in `config.json`
  says so, and the command line asks its follow-ups on their own.
- At most {MOST_ITEMS} objects and one string of up to 5 characters a picture, in one typeface.
- Photographs, people and anything outside these scenes are not supported.
- Where CLS looks (layers {", ".join(map(str, READ_LAYERS))} of 7) is the result of a training objective, see above.
- The GPU path of the trainer is written and was not run for these weights.

## The methods of the page, on the engine of the page

Printed by `python -m longtail evaluate --card`; every method stands in `results.json`.

<!-- accuracy begins -->
<!-- accuracy ends -->
"""


def _training(found: dict, notes: list[dict]) -> str:
    progress = found["progress"]
    changes = "".join(f"- From minute {note['minutes']:.0f} on: {note['note']}\n" for note in notes)
    pairs = ", ".join(sorted(f"{color} {shape}" for color, shape in HELD_OUT_PAIRS))
    return f"""## Data and recipe

- Scenes: 8 shapes, 8 colours, 2 sizes, up to {MOST_ITEMS} objects, a word or number in six of ten; plain, gradient or textured
  ground. Training uses seeds below {HELD_OUT_SEED:,}. The pairs {pairs} occur in no
  training picture, caption or question; they are about a third of the objects of every held-out picture.
- Objectives, all at once: the answers; linear heads for what each patch and the picture show; CLIP's contrast of
  captions and of phrases against patches; where CLS looks entering the last layers.
- Three stages: pictures only, 128 of {ALL} patches (to {STAGES[0].until:.0%} of the time); with questions (to {STAGES[1].until:.0%}); all {ALL} patches.
  In half of the steps the language model sees a random share of the patches, chosen in one of four ways, at
  contiguous positions; what no remaining token shows is not asked.
- Some training pictures have objects in colours without a name, never near a held-out one; of them no colour is asked.
- Muon and Adam, bfloat16 with float32 masters, two local-SGD processes on 2 CPU cores:
  {progress["minutes"]:.0f} minutes, {progress["steps"]:,} steps of the first process, {progress["images"]:,} pictures.
- Every figure of the run is in `training.jsonl`; its marks are of {DEV_SCENES} held-out development
  scenes, which steered the run; the answers below are to other scenes.
{changes}"""


def _answers(found: dict) -> str:
    full, asked, made = found["table"][f"cls-{ALL}"], found["table"]["asked"], found["generate"]
    lines = [
        f"""
## Answers, nothing pruned

Exact match, bfloat16, CPU. *Table*: {found["scenes"]} held-out scenes (seeds from {FINAL_SEED:,}), two questions a family, by teacher
forcing (equals greedy decoding). *Generate*: {made["scenes"]} further scenes through stock `generate`, one question a family.

| family | questions | table | generate |
|---|---|---|---|"""
    ]
    lines += [f"| {f} | {asked[f]} | {full[f]:.3f} | {made[f]:.3f} |" for f in SHORT]
    mean = sum(made[f] for f in SHORT) / len(SHORT)
    lines.append(f"| **mean** | {sum(asked[f] for f in SHORT)} | **{full['mean']:.3f}** | **{mean:.3f}** |")
    lines.append(
        f"""
"Describe the image.", decoded freely on {made["scenes"]} scenes: names {made["describe"]:.3f} of the things in full (size, colour, shape
and place; string and place), background right {made["describe_background"]:.3f}, whole text right {made["describe_exact"]:.3f}, {made["describe_tokens_mean"]} tokens on
average and {made["describe_tokens_most"]} at most."""
    )
    return "\n".join(lines)


def _missed(found: dict) -> str:
    full, made = found["table"][f"cls-{ALL}"], found["generate"]
    marks = [(name, full[name], goal) for name, goal in TARGETS.items()]
    marks += [
        ("things named by Describe", made["describe"], 0.95),
        ("its background", made["describe_background"], 0.90),
    ]
    short = [f"- {name}: {mark:.3f}, the aim was {goal:.2f}." for name, mark, goal in marks if mark < goal]
    few, fewer = (round(share * ALL) for share in (0.22, 0.1))
    gap, wide = (found["table"][f"oracle-{n}"]["mean"] - found["table"][f"cls-{n}"]["mean"] for n in (few, fewer))
    if gap < VISIBLE:
        short.append(
            f"- TopK by CLS should lose visibly to *item patches first* at {few} tokens; it loses {gap:.3f} there"
            f" and {wide:.3f} at {fewer}."
        )
    return "\n## Not reached\n\n" + (
        "\n".join(short) or "Every aim was reached (mean 0.96, each family 0.90, Describe 0.95, background 0.90)."
    )


def _pruned(found: dict) -> str:
    table = found["table"]
    lines = [
        f"""
## Answers on fewer visual tokens

The same {found["scenes"]} scenes. The whole vision tower runs; the language model gets the kept tokens at contiguous positions.

| kept | chosen by | {" | ".join(("mean", *SHORT))} | describe, tokens right |
|---|---|{"---|" * (len(SHORT) + 2)}"""
    ]
    for share in SHARES:
        count = round(share * ALL)
        for chooser in CHOOSERS if share < 1 else CHOOSERS[:1]:
            row = table[f"{chooser}-{count}"]
            marks = " | ".join(f"{row[f]:.3f}" for f in ("mean", *SHORT, "describe_tokens"))
            lines.append(f"| {share:.0%} ({count}) | {NAMES[chooser] if share < 1 else '-'} | {marks} |")
    return "\n".join(lines)


def _looks(found: dict) -> str:
    lines = [
        f"""
## Where CLS looks

Descending similarity, mean of {found["curve_scenes"]} held-out scenes; layer = what that vision layer reads. *own*: what CLS keeps for itself.
*AUC*: how well the value tells patches of things from ground.

| kind, layer | {" | ".join(f"#{r}" for r in RANKS)} | own | top 1 % | top 10 % | top 22 % | AUC |
|---|{"---|" * (len(RANKS) + 5)}"""
    ]
    for name, curve in found["curves"].items():
        ranks = " | ".join(f"{value:.2g}" for value in curve["ranks"])
        rest = " | ".join(f"{curve[k]:.2f}" for k in ("own", "top_1%", "top_10%", "top_22%", "auc"))
        lines.append(f"| {name.replace('-', ', ')} | {ranks} | {rest} |")
    phrases = found["phrases"]
    lines.append(
        f"""
CLIP: the text-patch cosine tells the patches that a phrase or question is about from the rest with AUC {phrases["phrase_auc"]:.3f};
a picture finds its caption among 16 in {phrases["caption_retrieval_of_16"]:.3f}."""
    )
    return "\n".join(lines)


def _learning(log: list[dict]) -> str:
    columns = ("mean", *SHORT, "describe_tokens")
    lines = [
        f"\n## Learning curve\n\n| minute | pictures | patches | letters | {' | '.join(columns)} |",
        f"|---|---|---|---|{'---|' * len(columns)}",
    ]
    for line in log:
        marks = line["marks"].get(f"cls-{line['patches']}", {})
        shown = " | ".join(f"{marks[c]:.2f}" if c in marks else "-" for c in columns)
        letters = line["marks"]["heads"]["patch_letters"]
        lines.append(f"| {line['minutes']:.0f} | {line['images']} | {line['patches']} | {letters:.2f} | {shown} |")
    return "\n".join(lines)
