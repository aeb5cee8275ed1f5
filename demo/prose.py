"""What the page says, as HTML. Whatever is not written here or in `words` is escaped."""

from html import escape

from longtail import REDUCERS
from longtail.models.loading import gib

from .examples import Example
from .words import say

LIVE = "element.setAttribute('aria-live', 'polite');"
ALERT = "element.setAttribute('role', 'alert');"
PANEL = (
    *("patches", "patch", "row", "column", "rank", "similarity", "kept", "recovered", "merged", "evicted", "dropped"),
    *("toggle", "after", "scrub", "curve", "no_curve", "curve_here", "by_hand", "hand_ask", "hand_kept", "hand_clear"),
    *("whole_image", "tile"),
    *("link", "copied"),
)
MARK = """<svg viewBox="0 0 64 40" width="64" height="40" aria-hidden="true">
<path class="tail" d="M17 24C26 33 38 35 62 36.5"/><path class="head" d="M2 3C6 11 10 17 17 24"/>
<path class="knee" d="M17 3V38"/></svg>"""


def header() -> str:
    """Name and claim."""
    return f'<header><div class="brand">{MARK}<h1>LongTail</h1></div><p>{say("claim")}</p></header>'


def status(llava, memory: str = "") -> str:
    """Which model answers, in what, on what."""
    if llava is None:
        return f'<p class="asleep">{say("no_model")}</p>'
    facts = [llava.name, str(llava.device), str(llava.dtype).removeprefix("torch.")]
    facts = [*map(escape, facts), say("grid", *llava.grid)]
    facts += [say("weights", gib(llava.loaded.weights))] if llava.loaded else []
    facts += [say("peak", memory)] if memory else []
    return f'<ul aria-label="{say("model_answers")}">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>'


def footer() -> str:
    """How to read the page, how it counts, what it keeps."""
    sections = (f"<section><h2>{say(f'foot_{i}')}</h2><p>{say(f'foot_{i}_text')}</p></section>" for i in (1, 2, 3))
    return f"<footer>{''.join(sections)}</footer>"


def recorded(conditions: str, name: str = "") -> str:
    """The conditions of a replayed report, marked as such; `name` is that of a recorded run."""
    return f'<b data-run="{escape(name)}">{say("recorded")}</b> {escape(conditions)}'


def truth(scene: Example | None) -> str:
    """What is known of an example: its true answer and what to look for."""
    if scene is None:
        return ""
    answer = say("truth", f"<b>{escape(scene.answer)}</b>") if scene.answer else ""
    return f"<p>{' · '.join(filter(None, (answer, escape(scene.note))))}</p>"


def about(name: str) -> str:
    """A method's sentence, its paper, and what its docstring adds."""
    reducer = REDUCERS[name]
    paragraphs = [" ".join(part.split()) for part in reducer.__doc__.split("\n\n")[1:]]
    paper = reducer.paper and f'<a href="{escape(reducer.paper)}" target="_blank" rel="noopener">{say("paper")}</a>'
    more = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    details = f"<details><summary>{say('how')}</summary>{more}</details>" if more else ""
    return f'<p>{escape(reducer.sentence())}</p><div class="more">{paper}{details}</div>'


def readings(counted: list[tuple[str, str, int]], instead: str = "") -> str:
    """How settings count on an image: what is read, the formula, the count; or a sentence instead."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(formula)}</td><td>{number:,}</td></tr>'
        for name, formula, number in counted
    )
    if not rows and not instead:
        return ""
    return f"<h4>{say('readings')}</h4>" + (f"<table><tbody>{rows}</tbody></table>" if rows else f"<p>{instead}</p>")
