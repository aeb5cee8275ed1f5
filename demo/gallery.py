"""Recorded runs: comparisons measured before, as cards that a click replays, and the command that records those which
come with the code: `python -m demo.gallery`."""

import base64
import io
import logging
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from longtail.export import Comparison
from longtail.report import read

from . import chart, export
from .words import say

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "assets" / "recorded"
REPEAT = 3  # rounds behind every time
RUNS = {  # name: what `longtail compare` is asked of an example scene, and what to look for
    "main-paper": (
        "small-word.png 'What is written in the image?' --methods Full,LongTail",
        "The main paper beside the unpruned model: the knee, the cut, and a small word that survives it.",
    ),
    "leaders": (
        "seven-objects.png 'What is in the image?' --methods Full,LongTail,VisionZip,DivPrune --budget 64",
        "The main paper and the leaders at an equal budget: a long answer, and what each of them leaves out.",
    ),
    "random": (
        "word-on-texture.png 'What word is written?' --methods Full,LongTail,Random,Uniform --budget 64",
        "What chance does: the control that every pruner must beat.",
    ),
    "stages": (
        "busy-with-word.png 'What is in the image?' "
        "--methods Full,LongTail:text_stage=False,LongTail:visual_stage=False,LongTail",
        "Stage 1, stage 2, both: with stage 2 the KV cache gives up patches while the answer is written.",
    ),
    "text-guided": (
        "held-out-pair.png 'Is there a yellow cross in the image?' "
        "--methods Full,TRIM,TRIM:sign=paper,CDPruner:sign=paper --budget 32",
        "Text-guided methods: the sign that TRIM was released with, made for OpenAI's CLIP, against the paper's.",
    ),
    "language-model": (
        "place.png 'Where is the small triangle?' --methods Full,FastV,PyramidDrop,SparseVLM --budget 64",
        "Methods inside the language model: all patches enter it, most are given up between its layers.",
    ),
    "merging": (
        "count-a-shape.png 'How many hearts are there?' --methods Full,ToMe,EViT,CrossGET --budget 64",
        "Methods inside the vision tower, which merge what they do not keep: groups by colour.",
    ),
    "follow-up": (
        "relation.png 'Is the yellow heart to the left of the white triangle?' --then 'What color is the triangle?' "
        "--methods Full,LongTail,VisPruner --budget 134",
        "A follow-up on the same image: the vision tower's output is taken over, and its time is none.",
    ),
}
CARD = """<li><button type="button" data-recorded="{name}" aria-pressed="false" title="{conditions}">
<img src="{thumbnail}" alt="" width="320" height="{height}"><b>{question}</b><span>{methods}</span>
<small>{setting}</small></button></li>"""
SCRIPT = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-recorded]'), below = document.querySelector('#conditions');
  if (!card) return;
  trigger('pick', {name: card.dataset.recorded});
  const behavior = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
  if (below.getBoundingClientRect().top > 0.9 * innerHeight) below.scrollIntoView({block: 'center', behavior});
});"""
DOT = "\u00a0· "  # a line ends behind it, none begins with it
STANDING = chart.script("gallery.js")  # of the line under the columns, which says what stands in them
WIDTH = 320  # pixels of a thumbnail
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """A recorded comparison: where it lies, and its card."""

    path: Path
    card: str

    @property
    def name(self) -> str:
        """What a link calls it."""
        return self.path.stem


# ---- showing


def read_recorded(folder: Path = RECORDED) -> dict[str, Recorded]:
    """The reports in a folder by name, ours in the order of RUNS, others by the alphabet behind them.

    What cannot be shown is left out and named in the log.
    """
    order, found = list(RUNS), {}
    paths = [path for path in folder.glob("*") if path.suffix.lower() in (".json", ".html")]
    for path in sorted(paths, key=lambda p: (order.index(p.stem) if p.stem in RUNS else len(RUNS), p.name)):
        try:
            if path.stem in found:
                raise ValueError(f"{found[path.stem].path.name} has its name already")
            found[path.stem] = Recorded(path, _card(path.stem, export.replayed(str(path)).comparison))
        except (ValueError, OSError) as error:
            log.warning("the recorded run %s is left out: %s", path.name, error)
    return found


def gallery(recorded: dict[str, Recorded], asleep: bool) -> gr.HTML:
    """The recorded runs as cards, open where no model answers; `gallery(...).pick(...)` is the event, `event.name` the
    run."""
    cards = "".join(run.card for run in recorded.values())
    value = (
        f"<details{' open' * asleep}><summary>{say('recorded_runs')} <i>{len(recorded)}</i></summary>"
        f"<p>{say('recorded_asleep' if asleep else 'recorded_awake')}</p><ul>{cards}</ul></details>"
    )
    there = bool(recorded)
    return gr.HTML(value, js_on_load=SCRIPT, elem_id="recorded", apply_default_css=False, visible=there)


def _card(name: str, comparison: Comparison) -> str:
    """Raises ValueError where the columns could not be set as the report has them."""
    export.lanes(comparison)
    first, thumbnail = comparison.records[0], _thumbnail(comparison)
    methods = Counter(record["method"] for record in comparison.records)
    return CARD.format(
        name=escape(name),
        conditions=escape(comparison.conditions),
        thumbnail="data:image/jpeg;base64," + base64.b64encode(_jpeg(thumbnail)).decode(),
        height=thumbnail.height,
        question=escape(first["question"]),
        methods=escape(DOT.join(f"{method} × {n}" if n > 1 else method for method, n in methods.items())),
        setting=escape(DOT.join((first["model"], first["device"], first["dtype"]))),
    )


def _thumbnail(comparison: Comparison) -> Image.Image:
    """The picture as the first method that prunes left it."""
    record = next((r for r in comparison.records if r["method"] != "Full"), comparison.records[0])
    picture = export.masked(record, comparison.crop)
    return picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82)
    return out.getvalue()


# ---- recording


def command(name: str) -> list[str]:
    """What `python -m longtail` is given to record a run, from the repository's root."""
    scene, *asked = shlex.split(RUNS[name][0])
    out = ["--repeat", str(REPEAT), "--out", f"assets/recorded/{name}.json"]
    return ["compare", f"assets/examples/{scene}", *asked, *out]


def readme(folder: Path = RECORDED) -> str:
    """The folder's card: each run, what to look for, the exact command, and the conditions that its file states."""
    parts = [INTRODUCTION]
    for name, (_, note) in RUNS.items():
        conditions = read((folder / f"{name}.json").read_text(encoding="utf-8")).conditions
        run = shlex.join([".venv/bin/python", "-m", "longtail", *command(name)])
        parts.append(f"## {name}\n\n{note}\n\n```sh\n{run}\n```\n\n{conditions}\n")
    return "\n".join(parts)


INTRODUCTION = """# Recorded runs

Comparisons of the bundled miniature on the example scenes, as `python -m longtail compare --out` writes them: the page
shows them as cards and replays them without a model. Another folder of such reports, of a real LLaVA for one, is shown
by `python app.py --recorded FOLDER`; a file's name is its name in a link, `?recorded=NAME`.

All of them again, and this page, in a minute or two, from the repository's root:

```sh
.venv/bin/python -m demo.gallery
```
"""


def main() -> int:
    """Record every run of RUNS, write the folder's card; returns the exit status."""
    from longtail.__main__ import main as longtail  # which the page itself does not need

    RECORDED.mkdir(exist_ok=True)
    for name in RUNS:
        if status := longtail(command(name)):
            return status
    (RECORDED / "README.md").write_text(readme(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
