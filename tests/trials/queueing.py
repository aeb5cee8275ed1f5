"""The line for the model: who finds it full, who waits in it, who leaves it."""

from contextlib import ExitStack

from demo.words import english

from .errands import Errand
from .figures import SHORT, Figure, every, none, tells, trouble, under, within
from .stand import Stand, picture, slow, talkative
from .visitor import Turn, Visitor

PAGE, CALL = (Errand(how, picture(1), SHORT) for how in ("run", "answer"))
Standing = list[tuple[Visitor, Turn]]


def queue(here: Stand, most: int = 2, beyond: int = 6) -> list[Figure]:
    """More callers than the line holds, of the page and of the API, and those who leave it."""
    usual, here.line.most = here.line.most, most
    with ExitStack() as open_:
        open_.callback(setattr, here.line, "most", usual)

        def comes(errand: Errand) -> tuple[Visitor, Turn]:
            visitor = open_.enter_context(here.visitor())
            return visitor, errand.ask(visitor)

        comes(PAGE)[1].wait()  # so that it is known how long one takes
        with slow(here.llava, 0.5), talkative(here.llava):
            _, first = comes(PAGE)
            here.door.until_inside()
            standing = [comes(PAGE) for _ in range(most)]
            within(lambda: here.line.waiting == most, 10)
            refused = [comes(CALL if at % 2 else PAGE)[1] for at in range(beyond)]
            within(lambda: all(turn.over.is_set() for turn in refused), 5)
            within(lambda: all(map(_placed, standing)), 5)
            shows, kept = [_placed(one) for one in standing], _left(here, standing, comes, most)
        answered = [first, *(turn for _, turn in standing)]
        within(lambda: all(turn.over.is_set() for turn in (*answered, *refused)), 60)
        served = [turn.over.is_set() and not trouble(turn) for turn in answered]
        hung = [turn for turn in (*answered, *refused) if not turn.over.is_set()]
    sentences, who = [trouble(turn) for turn in refused], f"{beyond} callers beyond a line of {most}"
    for sentence in sorted(set(sentences)):
        print("  refused with:", sentence or "nothing")
    return [
        every(f"{who}: refused with a sentence", sentences),
        every(f"{who}: told position and wait", [tells(sentence) for sentence in sentences]),
        under(f"{who}: slowest refusal", max(turn.seconds if turn.ended else 99.0 for turn in refused), 1),
        every("the others: answered", served),
        every("those who wait: the page shows place and wait", shows),
        none("places not freed by Stop, a closed tab, a cancelled call", kept),
        none("hangs", hung),
    ]


def _left(here: Stand, standing: Standing, comes, most: int) -> list[str]:
    """The last in line leaves, in one way after another, and somebody else comes; the ways that kept the place."""
    kept = []
    for how, follower in (("Stop", PAGE), ("a closed tab", CALL), ("a cancelled call", CALL)):
        visitor, turn = standing.pop()
        if how == "Stop":
            visitor.stop()
        elif how == "a closed tab":
            visitor.leave()
        else:
            visitor.cancel([turn])
        kept += [how] * (not within(lambda: here.line.waiting < most, 5))
        standing.append(comes(follower))
        within(lambda: here.line.waiting == most, 10)
    return kept


def _placed(standing: tuple[Visitor, Turn]) -> bool:
    """Whether one who waits is shown a place and a wait."""
    return tells(english(str(standing[1].part("message") or "")))
