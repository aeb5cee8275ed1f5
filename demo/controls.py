"""A reducer's parameters as Gradio components, made from what the reducer declares of itself.

A column keeps its settings as `{method: {parameter: value}}`, written by the browser alone: a value that was set is
there when Run is pressed, without a way to the server and back, and a method returned to is as it was left. Whatever
changes, all that the controls show is written at once, so that what is shown is what runs.
"""

import itertools
import json
from typing import Any

import gradio as gr

from longtail import REDUCERS, Reducer, make
from longtail.given import shown
from longtail.reducer import Parameter

Settings = dict[str, dict[str, Any]]
LONGEST_SLIDER = 2000  # steps; a wider range gets a number field
PICKED = "method => method"  # what is to be drawn, once: Gradio tells of a pick twice
STALE = """wanted => {{ const drawn = document.querySelector('#column-{} .drawn');
  if (drawn) {{ drawn.inert = true; drawn.dataset.wanted = wanted; }} return []; }}"""
FRESH = """const drawn = element.closest('.drawn');
if (!drawn.dataset.wanted || drawn.dataset.wanted === props.value) drawn.inert = false;"""
WRITE = """(...values) => {{ const all = values.pop(), usual = {usual}, changed = {{}};
  Object.entries(usual).forEach(([name, value], i) => {{ if (values[i] !== value) changed[name] = values[i]; }});
  return {{...all, [{method}]: changed}}; }}"""
LIMIT = """(...values) => {{ const limits = {limits}[JSON.stringify(values.slice({sliders}))];
  return limits.map(([minimum, maximum], i) => (
    {{__type__: 'update', minimum, maximum, value: Math.min(Math.max(values[i], minimum), maximum)}})); }}"""


def chosen(name: str, settings: Settings | None) -> Reducer:
    """The reducer that a column's settings describe. Raises ValueError with a sentence where they cannot."""
    if not isinstance(settings, dict | None):
        raise ValueError(f"the settings of a column must be given by method, got {shown(settings)}")
    values = (settings or {}).get(name) or {} if isinstance(name, str) else {}
    if not isinstance(values, dict):
        raise ValueError(f"the parameters of {name} must be given by name, got {shown(values)}")
    return make(name, **values)


def drawn(at: int, page: gr.Blocks, method: gr.Dropdown, settings: gr.JSON) -> gr.Textbox:
    """The controls of column `at`, drawn when the page is opened and when what is returned changes: to the method that
    was picked, or to anything new where settings come from elsewhere than the controls.

    Until they are there, those before take no input: nothing is typed into a field about to go.
    """
    redraw = gr.Textbox("", visible=False)
    quietly = {"queue": False, "show_progress": "hidden"}
    method.input(None, method, redraw, js=PICKED, api_visibility="private", **quietly)
    redraw.change(None, redraw, None, js=STALE.format(at + 1), api_visibility="private", **quietly)
    with gr.Column(elem_classes="drawn"):

        @gr.render([method, settings, redraw], triggers=[redraw.change, page.load], **quietly)
        def parameters(name, values, wanted):
            show(name, values, settings)
            gr.HTML(wanted, js_on_load=FRESH, elem_classes="fresh")

    return redraw


def show(name: str, settings: Settings | None, store: gr.JSON) -> dict[str, gr.components.Component]:
    """Place a component for each parameter of a method, set as `settings` say; together they write to `store`."""
    reducer = REDUCERS[name]
    usual = {p.name: p.default for p in reducer.parameters()}
    values = usual | ((settings or {}).get(name) or {})
    made = {p.name: control(p, values[p.name], _limits(reducer, p, values)) for p in reducer.parameters()}
    if not made:
        gr.Markdown(f"{name} has no parameters.", elem_classes="quiet")
        return made
    write = WRITE.format(usual=json.dumps(usual), method=json.dumps(name))
    changes = [component.change for component in made.values()]
    gr.on(changes, None, [*made.values(), store], store, js=write, show_progress="hidden", api_visibility="private")
    _follow_limits(reducer, made)
    return made


def control(parameter: Parameter, value, limits: tuple[float, float] | None):
    """The component for one parameter: a choice, switch, text, slider, or a number where a slider is too coarse."""
    info = parameter.help.replace("*", "∗")  # Gradio reads Markdown there, and i* is no emphasis
    look = {"label": parameter.name.replace("_", " "), "info": info, "value": value, "interactive": True}
    if parameter.choices:
        few = len(parameter.choices) <= 3
        return (gr.Radio if few else gr.Dropdown)(list(parameter.choices), **look)
    if parameter.kind is bool:
        return gr.Checkbox(**look)
    if parameter.kind is str:
        return gr.Textbox(**look)
    low, high = limits
    if (high - low) / (parameter.step or 1) > LONGEST_SLIDER:
        return gr.Number(precision=0 if parameter.kind is int else None, **look)
    return gr.Slider(low, high, step=parameter.step, **look)


def _limits(reducer: type[Reducer], parameter: Parameter, values: dict) -> tuple[float, float] | None:
    return None if parameter.low is None else reducer.limits(parameter.name, **values)


def _follow_limits(reducer: type[Reducer], made: dict):
    """Where a choice or a switch moves the limits of a slider, move the slider's, in the browser."""
    sliders = {name: component for name, component in made.items() if isinstance(component, gr.Slider)}
    moving = {p.name: moves for p in reducer.parameters() if (moves := _moves(reducer, p, sliders))}
    if not moving:
        return
    table = {
        json.dumps(values, separators=(",", ":")): [
            reducer.limits(name, **dict(zip(moving, values, strict=True))) for name in sliders
        ]
        for values in itertools.product(*moving.values())
    }
    gr.on(
        [made[name].input for name in moving],
        None,
        [*sliders.values(), *(made[name] for name in moving)],
        list(sliders.values()),
        js=LIMIT.format(limits=json.dumps(table), sliders=len(sliders)),
        show_progress="hidden",
        api_visibility="private",
    )


def _moves(reducer: type[Reducer], parameter: Parameter, sliders) -> tuple:
    """The values of a choice or a switch, where they move the limits of a slider."""
    values = parameter.choices or ((False, True) if parameter.kind is bool else ())
    limits = {tuple(reducer.limits(name, **{parameter.name: value}) for name in sliders) for value in values}
    return values if len(limits) > 1 else ()
