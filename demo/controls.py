"""A reducer's parameters as Gradio components, made from what the reducer declares of itself.

A column keeps its settings as `{method: {parameter: value}}`, written by the browser alone: a value that was set is
there when Run is pressed, without a way to the server and back, and a method returned to is as it was left.
"""

import json
from typing import Any

import gradio as gr

from longtail import REDUCERS, Reducer, make
from longtail.reducer import Parameter

Settings = dict[str, dict[str, Any]]
LONGEST_SLIDER = 2000  # steps; a wider range gets a number field


def chosen(name: str, settings: Settings | None) -> Reducer:
    """The reducer that a column's settings describe. Raises ValueError with a sentence where they cannot."""
    values = (settings or {}).get(name) or {}
    if not isinstance(values, dict):
        raise ValueError(f"the parameters of {name} must be given by name, got {values!r}")
    return make(name, **values)


def show(name: str, settings: Settings | None, store: gr.JSON) -> dict[str, gr.components.Component]:
    """Place a component for each parameter of a method, set as `settings` say; each writes itself to `store`."""
    reducer = REDUCERS[name]
    values = {p.name: p.default for p in reducer.parameters()} | ((settings or {}).get(name) or {})
    made = {p.name: control(p, values[p.name], _limits(reducer, p, values)) for p in reducer.parameters()}
    if not made:
        gr.Markdown(f"{name} has no parameters.", elem_classes="quiet")
    for parameter, component in made.items():
        component.change(None, [component, store], store, js=_writer(name, parameter), show_progress="hidden")
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
    """Where a choice or a switch moves the limits of a slider, move the slider's."""
    sliders = [name for name, component in made.items() if isinstance(component, gr.Slider)]
    switches = [component for component in made.values() if isinstance(component, gr.Radio | gr.Dropdown | gr.Checkbox)]
    if reducer.limits.__func__ is Reducer.limits.__func__ or not sliders or not switches:
        return

    def moved(*given):
        values = dict(zip(made, given, strict=True))
        limits = {name: reducer.limits(name, **values) for name in sliders}
        return [
            gr.update(minimum=low, maximum=high, value=min(max(values[name], low), high))
            for name, (low, high) in limits.items()
        ]

    gr.on(
        [switch.input for switch in switches],
        moved,
        list(made.values()),
        [made[name] for name in sliders],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _writer(method: str, parameter: str) -> str:
    method, parameter = json.dumps(method), json.dumps(parameter)
    return f"(value, all) => ({{...all, [{method}]: {{...(all ?? {{}})[{method}], [{parameter}]: value}}}})"
