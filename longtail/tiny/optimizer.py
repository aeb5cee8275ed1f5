"""Muon for the hidden matrices, Adam for the rest; masters in float32, working copies in the model's dtype."""

import torch

NOT_HIDDEN = ("embed", "lm_head", "position", "head", "scale")


class Optimizer:
    """`step(scale)` applies and clears the gradients; `buffers()` are what a checkpoint or an average needs."""

    def __init__(self, named, muon_rate: float = 0.014, adam_rate: float = 1.6e-3, decay: float = 0.01):
        self.muon_rate, self.adam_rate, self.decay = muon_rate, adam_rate, decay
        self.steps = torch.zeros(())
        groups, self.others = {}, []
        for name, p in named:
            if p.ndim == 2 and min(p.shape) >= 64 and not any(word in name for word in NOT_HIDDEN):
                groups.setdefault(tuple(p.shape), []).append(p)
            else:
                zeros = [torch.zeros_like(p, dtype=torch.float32) for _ in range(2)]
                self.others.append((p, p.detach().float().clone(), *zeros))
        self.hidden = []
        for members in groups.values():
            masters = torch.stack([p.detach().float() for p in members])
            self.hidden.append((members, masters, torch.zeros_like(masters)))

    def buffers(self):
        for _, masters, momentum in self.hidden:
            yield from (masters, momentum)
        for _, master, mean, square in self.others:
            yield from (master, mean, square)

    def masters(self):
        """(working copy, its float32 master)"""
        for members, masters, _ in self.hidden:
            yield from zip(members, masters, strict=True)
        for p, master, _, _ in self.others:
            yield p, master

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the working copies."""
        for p, master in self.masters():
            p.copy_(master)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        self.steps += 1
        for members, masters, momentum in self.hidden:
            grads = torch.stack([_gradient(p) for p in members])
            momentum.lerp_(grads, 0.05)
            update = _orthogonal(grads.lerp(momentum, 0.95))
            rows, columns = members[0].shape
            rate = self.muon_rate * scale
            masters.mul_(1 - rate * self.decay).add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)
        for p, master, mean, square in self.others:
            grad = _gradient(p)
            mean.lerp_(grad, 0.1)
            square.lerp_(grad * grad, 0.02)
            size = (square / (1 - 0.98**self.steps)).sqrt() + 1e-8
            master.sub_(self.adam_rate * scale * (mean / (1 - 0.9**self.steps)) / size)
        self.publish()


def _gradient(p: torch.Tensor) -> torch.Tensor:
    grad = torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
    p.grad = None
    return grad


def _orthogonal(update: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, by five Newton-Schulz steps in bfloat16 (Jordan et al., Muon)."""
    x = update.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.transpose(1, 2) if tall else x).float()
