"""How a model is spoken to: what may be asked, and the chat template of a checkpoint that brings none."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain, cycle

from ..given import shown

MAX_QUESTION = 4000  # characters, all that was said before it included
BREAK = "\u200b"  # a zero-width space, which no special token holds
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols to Unicode that nobody sees

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
SAID = (
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: " + SAID + " ASSISTANT:"
    "{% else %} " + SAID + "</s>{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] " + SAID + " [/INST]"
    "{% else %} " + SAID + "</s>{% endif %}{% endfor %}"
)


def template(family: str, language: str) -> str:
    """The Jinja template of a model of that `model_type` whose language model is of that one.

    LLaVA-1.5 was trained on Vicuna without a system sentence, LLaVA-1.6 with the one of its model card. Raises
    ValueError for a language model that was trained on neither.
    """
    if language == "mistral":
        return MISTRAL
    if language == "llama":
        return (SYSTEM if family == "llava_next" else "") + VICUNA
    raise ValueError(
        f"the checkpoint brings no chat template, and none is known for a {language!r} language model: "
        "add a chat_template.jinja to its folder"
    )


def messages(texts: list[str]) -> list[dict]:
    """Question, answer, question, ... as a chat template reads them; the image stands in the first turn."""
    turns = zip(cycle(("user", "assistant")), texts, strict=False)
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image"})
    return messages


class Special:
    """What a tokenizer reads as more than its letters: broken in what a visitor says, told apart in what is read."""

    def __init__(self, tokenizer):
        named = {str(added): number for number, added in tokenizer.added_tokens_decoder.items()}
        named |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        marks = sorted(filter(str.strip, named), key=len, reverse=True)  # added space is no mark
        self.pattern = re.compile(f"(?={'|'.join(map(re.escape, marks)) or '(?!)'}).", re.DOTALL)
        self.ids = {named[mark] for mark in marks} - {tokenizer.unk_token_id}  # unknown letters are no mark either

    def inert(self, text: str) -> str:
        """The text with a zero-width space behind the first letter of each special token, so that it stays text."""
        return self.pattern.sub(rf"\g<0>{BREAK}", text)

    def of(self, ids: list[int]) -> list[int]:
        """The special ones among token ids, in order."""
        return [number for number in ids if number in self.ids]


def refuse(question: str, history: Sequence[tuple[str, str]], preface: str):
    """ValueError where a question is empty, there is too much text or none, or an earlier turn is no question and
    answer."""
    if not isinstance(history, tuple | list):
        raise ValueError(f"the history must be pairs of a question and its answer, got {shown(history)}")
    for turn in history:
        if not isinstance(turn, tuple | list) or [type(text) for text in turn] != [str, str]:
            raise ValueError(f"the history must be pairs of a question and its answer, got {shown(turn)}")
    for name, text in (("question", question), ("preface", preface)):
        if not isinstance(text, str):
            raise ValueError(f"the {name} must be text, got {shown(text)}")
    if len(question) > MAX_QUESTION:
        raise ValueError(
            f"the question has {len(question):,} characters, at most {MAX_QUESTION:,} are read: shorten it"
        )
    said = (preface, *chain.from_iterable(history), question)
    if (whole := sum(map(len, said))) > MAX_QUESTION:
        raise ValueError(
            f"the question and what was said before it have {whole:,} characters, at most {MAX_QUESTION:,} are read: "
            "ask with fewer turns, or less text, before it"
        )
    if half := re.search("[\ud800-\udfff]", "".join(said)):
        raise ValueError(f"the text holds half a character, {shown(half[0])}, which cannot be written: type it again")
    if not all(map(_visible, (question, *(asked for asked, _ in history)))):
        raise ValueError("the question is empty: type what you want to know about the image")


def _visible(text: str) -> bool:
    """Whether there is anything to read: not only space, control and format characters, and lone accents."""
    return any(unicodedata.category(letter)[0] in "LNPS" and letter not in BLANK for letter in text)
