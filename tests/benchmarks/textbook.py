"""Diffusion recovery likelihood as a textbook would write it: the other side of ``python -m tests.benchmarks cost``.

Plain torch: the level's embedding inside the network and so inside every Langevin step, the sampler's gradient through
``autograd`` with the parameters taking gradients as well, one forward pass for the data and one for the negatives.
"""

import itertools
import math

import torch
from torch import Tensor, nn


class TextbookEnergy(nn.Module):
    """A perceptron on the same Fourier features, widths and FiLM as ``MLPEnergy``, its levels embedded by sinusoids."""

    def __init__(self, hidden: int = 128, depth: int = 3, frequencies: int = 64, embedding: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, frequencies) * 4)
        widths = [2 + 2 * frequencies, *[hidden] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.embed = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, depth * 2 * hidden))
        self.readout = nn.Linear(hidden, 1)
        self.embedding = embedding

    frequencies: Tensor

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        half = torch.exp(torch.arange(self.embedding // 2) * (-math.log(1e4) / (self.embedding // 2)))
        angle = level[:, None] * half
        film = self.embed(torch.cat([angle.sin(), angle.cos()], -1)).chunk(2 * len(self.layers), -1)
        phase = x @ self.frequencies
        h = torch.cat([x, phase.sin(), phase.cos()], -1)
        for layer, scale, shift in zip(self.layers, film[0::2], film[1::2], strict=True):
            h = nn.functional.silu(layer(h) * (1 + scale) + shift)
        return self.readout(h).squeeze(-1) + 0.5 * (x * x).sum(-1)


def train(data: Tensor, alpha_bar: Tensor, sigma_bar: Tensor, *, batch: int, steps: int, updates: int) -> nn.Module:
    """Adam on the contrastive loss, ``steps`` of MALA for each update with one fixed step size per level."""
    net = TextbookEnergy()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    average = [p.detach().clone() for p in net.parameters()]
    alpha = alpha_bar[1:] / alpha_bar[:-1]
    sigma = (sigma_bar[1:] ** 2 - (alpha * sigma_bar[:-1]) ** 2).sqrt()
    for _ in range(updates):
        x0 = data[torch.randint(len(data), (batch,))]
        t = torch.randint(len(alpha), (batch,))
        clean = alpha_bar[t, None] * x0 + sigma_bar[t, None] * torch.randn_like(x0)
        noisy = alpha[t, None] * clean + sigma[t, None] * torch.randn_like(x0)
        tilted = (t < len(alpha) - 1).float()

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.detach().requires_grad_(True)
            tilt = ((alpha[t, None] * x - noisy) ** 2).sum(-1) / (2 * sigma[t] ** 2)  # noqa: B023
            energy = net(x, t) + tilted * tilt  # noqa: B023
            energy.sum().backward()
            assert x.grad is not None
            return energy.detach(), x.grad

        step = (0.3 * sigma / alpha).clamp(max=0.5)[t]
        x = clean
        for _ in range(steps):
            energy, grad = evaluate(x)
            noise = torch.randn_like(x)
            proposal = x - 0.5 * step[:, None] ** 2 * grad + step[:, None] * noise
            new_energy, new_grad = evaluate(proposal)
            back = noise - 0.5 * step[:, None] * (grad + new_grad)
            log_ratio = energy - new_energy + 0.5 * ((noise**2).sum(-1) - (back**2).sum(-1))
            accept = torch.rand(batch).log() < log_ratio
            x = torch.where(accept[:, None], proposal, x)
        loss = net(clean, t).mean() - net(x.detach(), t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters(), strict=True):
                a.mul_(0.999).add_(p, alpha=0.001)
    return net
