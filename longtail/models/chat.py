"""How a model is spoken to: what may be asked, and the chat template of a checkpoint that brings none."""

from collections.abc import Sequence
from itertools import cycle

MAX_QUESTION = 4000  # characters, all that was said before it included

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


def refuse(question: str, history: Sequence[tuple[str, str]], preface: str):
    """ValueError where a question is empty, there is too much text, or an earlier turn is no question and answer."""
    for turn in history:
        if not isinstance(turn, tuple | list) or [type(text) for text in turn] != [str, str]:
            raise ValueError(f"the history must be pairs of a question and its answer, got {turn!r}")
    if not all(asked.strip() for asked in (question, *(asked for asked, _ in history))):
        raise ValueError("the question is empty: type what you want to know about the image")
    if len(question) > MAX_QUESTION:
        raise ValueError(
            f"the question has {len(question):,} characters, at most {MAX_QUESTION:,} are read: shorten it"
        )
    whole = len(question) + len(preface) + sum(len(text) for turn in history for text in turn)
    if whole > MAX_QUESTION:
        raise ValueError(
            f"the question and what was said before it have {whole:,} characters, at most {MAX_QUESTION:,} are read: "
            "ask with fewer turns, or less text, before it"
        )
