"""What a CUDA graph does, on a CPU: the ops of a stretch of work are taken down with the very tensors they had, and
played again on the same memory. What the host decided meanwhile stays as it was, and asking the host is an error."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKS = ("_local_scalar_dense", "nonzero", "_to_copy_host", "masked_select", "is_nonzero", "item")


class Tape(TorchDispatchMode):
    """Takes down every op; `played` runs them again, into the tensors they first made."""

    def __init__(self):
        super().__init__()
        self.taken, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = op._schema.name.removeprefix("aten::")
        if name in ASKS or (name == "index" and any(_is_bool(i) for i in args[1])):
            raise RuntimeError(f"{name} waits for the host: it cannot be captured")
        for spec, given in zip(op._schema.arguments, args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write and _place(given) not in self.made:
                self.before.setdefault(_place(given), (given, given.clone()))
        out = op(*args, **kwargs)
        self.taken.append((op, args, kwargs, out))
        given = {_place(x) for x in _tensors((*args, *kwargs.values()))}
        self.made |= {_place(x) for x in _tensors([out])} - given
        return out

    def undo(self):
        """Capturing runs nothing: what was written meanwhile is as it was."""
        for tensor, was in self.before.values():
            tensor.copy_(was)

    def played(self):
        """Everything once more."""
        for op, args, kwargs, out in self.taken:
            given = {_place(x) for x in _tensors((*args, *kwargs.values()))}
            fresh = [x for x in _tensors([out]) if _place(x) not in given]
            writes = any(a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments)
            if fresh or writes:
                again = op(*args, **kwargs)
                for into, made in zip(_tensors([out]), _tensors([again]), strict=True):
                    if _place(into) not in given:
                        into.copy_(made)


def capture(work):
    """As `longtail.graph.capture`."""
    tape = Tape()
    with tape:
        made = work()
    tape.undo()
    return tape.played, made


def _tensors(things) -> list[torch.Tensor]:
    found = []
    for thing in things:
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            found += _tensors(thing)
    return found


def _place(tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_bool(index) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
