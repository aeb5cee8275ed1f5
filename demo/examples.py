"""The example scenes: read from their folder, shown as cards that a click or the keyboard picks."""

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"

CARD = """<button type="button" data-example="{index}" data-name="{name}" aria-pressed="{pressed}" title="{note}">
<img src="{thumbnail}" alt="" width="96" height="96"><span>{question}</span></button>"""

SCRIPT = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-example]');
  if (!card) return;
  trigger('pick', {index: Number(card.dataset.example)});
});"""
PRESSED = """name => { for (const card of document.querySelectorAll('[data-example]'))
  card.setAttribute('aria-pressed', card.dataset.name === name); }"""


@dataclass(frozen=True)
class Example:
    """A scene, a question about it, the true answer, and what to look for."""

    image: str
    question: str
    answer: str
    note: str

    @property
    def name(self) -> str:
        """What a link calls it."""
        return Path(self.image).stem


def read_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The scenes that `examples.json` in the folder lists, in its order; none where there is no such file."""
    listing = folder / "examples.json"
    if not listing.is_file():
        return []
    fields = ("question", "answer", "note")
    entries = json.loads(listing.read_text(encoding="utf-8"))
    return [Example(str(folder / e["image"]), *(str(e.get(field, "")) for field in fields)) for e in entries]


def cards(examples: list[Example]) -> gr.HTML:
    """The examples as cards; `cards(...).pick(...)` is the event, `event.index` the example."""
    shown = "".join(
        CARD.format(
            index=i,
            name=html.escape(example.name),
            pressed=str(i == 0).lower(),
            note=html.escape(example.note),
            question=html.escape(example.question),
            thumbnail=_thumbnail(example.image),
        )
        for i, example in enumerate(examples)
    )
    group = f'<div class="cards" role="group" aria-label="Example scenes">{shown}</div>'
    return gr.HTML(group, js_on_load=SCRIPT, elem_id="examples", apply_default_css=False)


def _thumbnail(path: str) -> str:
    picture = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize((144, 144), Image.Resampling.LANCZOS).save(picture, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode()
