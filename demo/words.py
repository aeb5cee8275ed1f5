"""What the page says in words, as HTML. Whatever is not written here is escaped."""

from html import escape

from longtail import REDUCERS

from .examples import Example

INVITATION = "Ready: press Run, or ask something else."
EMPTY = "Drop an image in, paste one, or pick an example scene."
EXAMPLES_TITLE = "<p>Example scenes</p>"
LIVE = "element.setAttribute('aria-live', 'polite');"
ALERT = "element.setAttribute('role', 'alert');"

FOOTER = """<footer>
<section><h2>Reading a column</h2><p>The picture is the square that the model itself sees. Patches it still reads are
clear and outlined, in blue where a method took them back; half-faded ones were merged into others; dropped ones are
grey; a cross marks a patch that the language model gave up itself, between two layers or later from its KV cache. The
curve sorts the patches by their similarity to CLS: the dashed line is the knee i*, between head and tail; the solid one
is the cut; the dotted curve is the objective f, whose maximum is the knee.</p></section>
<section><h2>How the numbers are taken</h2><p>Each method runs alone, the whole way from pixels to the last word, on the
engine that the command line and the library use. Time to first token covers preprocessing, vision tower, method and
prefill; time per token is the median of the later ones. Drawing this page is not in it. One run is one run: read times
as an impression, counts as exact.</p></section>
<section><h2>What may be asked</h2><p>The bundled miniature (tiny) knows drawn scenes like the examples, nothing else:
photographs want a real LLaVA, <code>python app.py --model llava-1.5-7b</code>. Uploads are not kept: a file is deleted
from this server within about an hour, never looked at, never logged.</p></section>
</footer>"""

MARK = """<svg viewBox="0 0 64 40" width="64" height="40" aria-hidden="true">
<path class="tail" d="M17 24C26 33 38 35 62 36.5"/><path class="head" d="M2 3C6 11 10 17 17 24"/>
<path class="knee" d="M17 3V38"/></svg>"""


def header(llava) -> str:
    """Name, claim, and which model answers."""
    rows, columns = llava.grid
    facts = (llava.name, str(llava.device), str(llava.dtype).removeprefix("torch."), f"{rows} x {columns} patches")
    chips = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f'<header><div class="brand">{MARK}<h1>LongTail</h1></div>'
        "<p>See what a vision-language model still needs when you take its visual tokens away.</p>"
        f'<ul aria-label="The model that answers">{chips}</ul></header>'
    )


def truth(scene: Example) -> str:
    """What is known of an example: its true answer and what to look for."""
    answer = f"True answer: <b>{escape(scene.answer)}</b>" if scene.answer else ""
    return f"<p>{' · '.join(filter(None, (answer, escape(scene.note))))}</p>"


def about(name: str) -> str:
    """A method's sentence, its paper, and what its docstring adds."""
    reducer = REDUCERS[name]
    paragraphs = [" ".join(part.split()) for part in reducer.__doc__.split("\n\n")[1:]]
    paper = f'<a href="{escape(reducer.paper)}" target="_blank" rel="noopener">Paper</a>' if reducer.paper else ""
    more = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    details = f"<details><summary>How it works</summary>{more}</details>" if more else ""
    return f'<p>{escape(reducer.sentence())}</p><div class="more">{paper}{details}</div>'
