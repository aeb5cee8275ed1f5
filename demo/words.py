"""What the page says, in the visitor's language: `texts` has the words, the browser picks the language.

What the library says of itself (a method's docstring, a parameter's help, why something is refused) stays as it was
written, and so do conditions, citations, and the names of methods, parameters and families of questions.
"""

import json
import re

import gradio as gr

from .chart import script
from .texts import TEXTS

PLACE = "{}"
START, NAMED, END = "\ue000", "\ue002", "\ue001"  # a piece is START name NAMED words END until the browser has read it
PIECES = {
    f"{key}.{i}": pair
    for key, (english, chinese) in TEXTS.items()
    for i, pair in enumerate(zip(english.split(PLACE), chinese.split(PLACE), strict=True))
}
LANGUAGE, LABEL = "language", "words/{}"  # Gradio translates every choice that is a key: keys look like no choice
LABELS = {LABEL.format(key): pair for key, pair in TEXTS.items() if PLACE not in pair[0]}
ENGLISH_LABELS, CHINESE_LABELS = ({key: pair[i] for key, pair in LABELS.items()} for i in (0, 1))
I18N = gr.I18n(
    en=ENGLISH_LABELS | {LANGUAGE: "en"},
    **{tag: CHINESE_LABELS | {LANGUAGE: "zh"} for tag in ("zh-CN", "zh-TW")},
)
CHINESE = {name: chinese for name, (_, chinese) in PIECES.items()}
SCRIPT = "const DICTIONARY = " + json.dumps(CHINESE) + script("words.js")


def say(key: str, *values) -> str:
    """A text with values in its places, marked for the browser, which puts the visitor's language there."""
    pieces = [_marked(f"{key}.{i}") for i in range(TEXTS[key][0].count(PLACE) + 1)]
    return "".join(part for pair in zip(pieces, (*map(str, values), ""), strict=True) for part in pair)


def label(key: str):
    """A text without places as a component's label, which Gradio translates itself."""
    return I18N(choice(key))


def choice(key: str) -> str:
    """A text without places as a choice of a Dropdown, which shows it in an <input>: no script of ours reads there."""
    return LABEL.format(key)


def english(text: str) -> str:
    """What `say` made, in plain English."""
    return re.sub(f"{START}[^{NAMED}]*{NAMED}|{END}", "", text)


def dictionary(keys: tuple[str, ...]) -> gr.HTML:
    """What translates: Gradio tells it the visitor's language. Scripts look `keys` up in it."""
    listed = "".join(f'<i data-word="{key}">{say(key)}</i>' for key in keys)
    return gr.HTML(I18N(LANGUAGE), html_template=listed, js_on_load=SCRIPT, elem_id="words")


def _marked(name: str) -> str:
    """A piece of a text; what both languages leave blank needs no marks."""
    english, chinese = PIECES[name]
    return f"{START}{name}{NAMED}{english}{END}" if (english + chinese).strip() else english
