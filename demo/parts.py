"""Everything on the page that an event reads or fills, and where each part of a run is shown."""

from dataclasses import dataclass
from itertools import count

import gradio as gr

from . import board, layout, link, run, sweep
from .examples import Example
from .gallery import Recorded
from .host import Host
from .presets import Lanes

FRESH = count(1)


@dataclass(frozen=True)
class Page:
    """Everything on the page that an event reads or fills."""

    host: Host
    time_limit: float
    scenes: list[Example]
    recorded: dict[str, Recorded]  # by name
    status: gr.HTML
    model: gr.Dropdown
    tabs: gr.Tabs
    asking: layout.Asking
    bar: layout.Bar
    columns: list[layout.Column]
    overlaps: gr.HTML
    swept: sweep.Sweep
    shown: gr.JSON  # which columns are
    result: gr.State

    def lanes(self) -> list:
        """The components that a `Lanes` is read from."""
        return [self.shown, *(c.method for c in self.columns), *(c.settings for c in self.columns)]

    def held(self) -> list:
        """The components whose values stand in the address, in the order that its script reads."""
        shown, *columns = self.lanes()
        return [self.asking.question, self.asking.example, shown, *self.fields().values(), *columns]

    def fields(self) -> dict:
        """The plain fields, by their names in the address."""
        fields = [self.bar.budget, *self.asking.options, *self.asking.sheet, *self.swept.asked.values()]
        return dict(zip(link.FIELDS, fields, strict=True))

    def places(self) -> dict:
        """Which component shows which part of a run."""
        parts = {(column.index, part): place for column in self.columns for part, place in column.parts.items()}
        parts |= {(column.index, "picture"): column.parts["panel"] for column in self.columns}
        return parts | {
            run.MESSAGE: self.asking.message,
            run.TROUBLE: self.asking.trouble,
            run.NEED_IMAGE: self.asking.need_image,
            run.NEED_QUESTION: self.asking.need_question,
            board.CONDITIONS: self.bar.conditions,
            board.OVERLAPS: self.overlaps,
            board.STATUS: self.status,
            board.RESULT: self.result,
        }

    def update(self, parts: run.Parts) -> dict:
        """The parts that a run names, as Gradio updates."""
        places, updates = self.places(), {}
        for (column, part), value in parts.items():
            place = places[column, part]
            if part in ("panel", "picture"):
                changed = {"value": value} if part == "panel" else {"picture": value}
                updates[place] = gr.update(
                    **{k: v for k, v in (updates.get(place) or {}).items() if k != "__type__"} | changed
                )
            else:
                updates[place] = value
        return updates

    def shown_of(self, parts: run.Parts) -> dict:
        """The same; of no parts an update that changes nothing, which Gradio takes for one all the same."""
        return self.update(parts) or {self.asking.message: gr.skip()}

    def outputs(self) -> list:
        """Everything that a run may change."""
        return list(dict.fromkeys(self.places().values()))

    def everything(self) -> list:
        """Everything that an event may change."""
        asking = self.asking
        asked = [asking.picture, asking.question, asking.example, asking.truth, self.tabs, self.model]
        return list(dict.fromkeys([*asked, *self.held(), *self.setting(), *self.outputs()]))

    def set(self, lanes: Lanes, before: Lanes | None = None) -> dict:
        """The columns as these lanes have them; where it was as `before`, a column's settings are left alone, for the
        visitor may be changing them now."""
        updates = {self.shown: lanes.shown, self.bar.add: gr.update(visible=not all(lanes.shown))}
        for i, column in enumerate(self.columns):
            on, method, settings = lanes.shown[i], lanes.methods[i], lanes.settings[i]
            updates |= {
                column.box: gr.update(visible=on),
                column.remove: gr.update(visible=on and sum(lanes.shown) > 1),
            }
            if before is None or (method, settings) != (before.methods[i], before.settings[i]):
                updates |= {column.method: method, column.settings: settings, column.redraw: str(next(FRESH))}
        return updates

    def setting(self) -> list:
        """Everything that `set` may change."""
        each = [[c.box, c.remove, c.method, c.settings, c.redraw] for c in self.columns]
        return [self.shown, self.bar.add, *(part for parts in each for part in parts)]
