"""How a checkpoint that brings no chat template is spoken to: as Vicuna was in its training, or as Mistral."""

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
