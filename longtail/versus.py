"""What an answer has in common with the unpruned one: words, the first token's distribution, patches, time."""

from difflib import SequenceMatcher

from torch import Tensor

FAR = 400  # words that are laid beside each other; the time to do so grows with their square


def differences(text: str, reference: str) -> list[tuple[str, str]]:
    """The words of `text` and of `reference` in one line: (same | added | missing, words), in reading order. What is
    beyond 400 words of either is not compared: it stands at the end as missing and as added."""
    ours, theirs = text.split(), reference.split()
    line = []
    for kind, a, b, c, d in SequenceMatcher(None, theirs[:FAR], ours[:FAR], autojunk=False).get_opcodes():
        same = kind == "equal"
        both = (("same", ours[c:d]),) if same else (("missing", theirs[a:b]), ("added", ours[c:d]))
        line += [(name, " ".join(words)) for name, words in both if words]
    beyond = (("missing", theirs[FAR:]), ("added", ours[FAR:]))
    return line + [(name, " ".join(words)) for name, words in beyond if words]


def agreement(text: str, reference: str) -> float:
    """Share of words that both have in the same order: 2 x matching / all of both (Ratcliff, Obershelp)."""
    return SequenceMatcher(None, reference.split(), text.split(), autojunk=False).ratio()


def divergence(logits: Tensor, reference: Tensor) -> float:
    """KL(reference || this) in nats of two next-token distributions, from their logits [V]."""
    ours, theirs = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum().clamp_min(0))


def overlap(keep: list[int], other: list[int]) -> float:
    """Intersection over union of two sets of kept patches; a token that stands on none (-1) is not counted."""
    ours, theirs = ({patch for patch in some if patch >= 0} for some in (keep, other))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def versus(record: dict, reference: dict, logits: Tensor | None = None, plain: Tensor | None = None) -> dict:
    """One record against the unpruned one's: `agreement`, `kl` (None without both logits), and how many times faster
    the first token and the whole answer came."""
    ours, theirs = record["seconds"], reference["seconds"]
    faster = {name: theirs[name] / ours[name] if ours[name] else None for name in ("first_token", "total")}
    return {
        "agreement": agreement(record["answer"], reference["answer"]),
        "kl": None if logits is None or plain is None else divergence(logits, plain),
        "faster": faster,
    }
