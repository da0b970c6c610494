"""The energies of the samplers' benchmark, in torch and again in jax."""

import hashlib
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import energyppl as ep


class Target(nn.Module):
    """An energy ``(*batch, *event) -> (*batch,)`` in nats."""

    event_shape: torch.Size


class Banana(Target):
    """``ep.toys.Banana(curvature=0.5, scale=1.0)`` without its constant."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("curvature", torch.tensor(0.5))
        self.register_buffer("scale", torch.tensor(1.0))

    curvature: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        ridge = self.curvature * (first.square() - self.scale.square())
        return 0.5 * ((first / self.scale).square() + (second - ridge).square())


class Gaussian(Target):
    """Ten independent coordinates, standard deviations 0.1 to 3.16: a condition number of 1,000."""

    event_shape = torch.Size((10,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sd", torch.logspace(-1, 0.5, 10))

    sd: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x / self.sd).square().sum(-1)


class Schools(Target):
    """Eight schools (Rubin 1981; Gelman et al. 2013, section 5.5), not centred: μ ~ N(0, 5²), τ ~ half-Cauchy(5)."""

    event_shape = torch.Size((10,))  # (μ, log τ, (θ − μ) / τ)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("effect", torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]))
        self.register_buffer("error", torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]))

    effect: Tensor
    error: Tensor

    def forward(self, x: Tensor) -> Tensor:
        mu, log_tau, z = x[..., 0], x[..., 1], x[..., 2:]
        tau = log_tau.exp()
        misfit = (mu.unsqueeze(-1) + tau.unsqueeze(-1) * z - self.effect) / self.error
        prior = 0.5 * (mu / 5.0).square() + torch.log1p((tau / 5.0).square()) - log_tau + 0.5 * z.square().sum(-1)
        return prior + 0.5 * misfit.square().sum(-1)


class Logistic(Target):
    """Logistic regression on 1,000 made rows of 24 correlated columns and a constant, its weights N(0, 1)."""

    event_shape = torch.Size((25,))

    def __init__(self) -> None:
        super().__init__()
        shared = torch.randn(1000, 4) @ torch.randn(4, 24)
        columns = torch.cat([torch.ones(1000, 1), 0.5 * shared + torch.randn(1000, 24)], 1)
        chance = torch.sigmoid(columns @ (0.3 * torch.randn(25)))
        self.register_buffer("columns", columns)
        self.register_buffer("outcome", (torch.rand(1000) < chance).float())

    columns: Tensor
    outcome: Tensor

    def forward(self, x: Tensor) -> Tensor:
        logit = x @ self.columns.T
        return 0.5 * x.square().sum(-1) + functional.softplus(logit).sum(-1) - logit @ self.outcome


class Rings(Target):
    """A perceptron 2 → 128 → 128 → 1 fitted to four rings wide enough (sd 0.25) that chains cross between them."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
        self.register_buffer("confinement", torch.tensor(0.05))

    confinement: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + 0.5 * self.confinement * x.square().sum(-1)

    def fit(self) -> None:
        """Regression to the rings' own energy U, as 10 asinh(U / 10) so that far points don't take over."""
        toy = ep.toys.Rings(sd=0.25)
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000)
        for _ in range(4000):
            near = toy.sample((256,)) + 0.3 * torch.randn(256, 2)
            x = torch.cat([near, 14 * torch.rand(256, 2) - 7])
            wanted = 10 * torch.asinh(toy(x).clamp(min=-5) / 10)
            loss = (self(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


class Digits(Target):
    """A small convolutional energy of 8 x 8 images, 1 → 32 → 64 channels, with a confining quadratic."""

    event_shape = torch.Size((1, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.last = nn.Linear(64, 1, bias=False)
        self.register_buffer("confinement", torch.tensor(1.0))

    confinement: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 1, 8, 8)
        hidden = functional.silu(self.second(functional.silu(self.first(rows))))
        energy = self.last(hidden.sum((2, 3))).squeeze(-1) + 0.5 * self.confinement * rows.square().sum((1, 2, 3))
        return energy.reshape(x.shape[:-3])

    def fit(self, noise: float = 0.5) -> None:
        """Denoising score matching (Vincent 2011) on images of two smooth blobs."""
        optimizer = torch.optim.Adam(self.parameters(), 1e-3)
        grid = torch.arange(8.0)
        for _ in range(400):
            center = 1 + 6 * torch.rand(64, 2, 2, 1)
            bump = (-0.5 * ((grid - center) / 1.2).square()).exp()  # (64, blobs, axes, 8)
            clean = 2 * torch.einsum("nbi,nbj->nij", bump[:, :, 0], bump[:, :, 1]).unsqueeze(1) - 0.5
            eps = torch.randn_like(clean)
            x = (clean + noise * eps).requires_grad_(True)
            (grad,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            loss = (noise * grad - eps).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


TARGETS: dict[str, Callable[[], Target]] = {
    "banana": Banana,
    "gaussian": Gaussian,
    "schools": Schools,
    "logistic": Logistic,
    "rings": Rings,
    "digits": Digits,
}


def make(name: str) -> Target:
    """The energy, fitted once and kept in the temporary folder under the hash of its source."""
    cls = TARGETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energy = cls()
        if isinstance(energy, (Rings, Digits)):
            source = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:16]
            path = Path(tempfile.gettempdir()) / f"energyppl-benchmark-{name}-{source}.pt"
            if path.exists():
                energy.load_state_dict(torch.load(path, weights_only=True))
            else:
                energy.fit()
                torch.save(energy.state_dict(), path)
    return energy.requires_grad_(False).eval()


def truth(name: str, energy: Target) -> tuple[Tensor, Tensor] | None:
    """Means and variances of the coordinates, float64; None where nobody knows them."""
    if name == "banana":
        return torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 1.5], dtype=torch.float64)
    if name == "gaussian":
        return torch.zeros(10, dtype=torch.float64), energy.get_buffer("sd").double().square()
    if name == "rings":  # on a grid: a spacing of 0.02 resolves it, and beyond 9 there is nothing
        axis = torch.linspace(-9, 9, 901)
        x = torch.cartesian_prod(axis, axis)
        weight = (-torch.cat([energy(part) for part in x.split(20_000)]).double()).softmax(0).unsqueeze(1)
        mean = (weight * x).sum(0)
        return mean, (weight * (x - mean).square()).sum(0)
    return None


# --- In jax ---


def jax_energy(name: str, energy: Target) -> Callable[[Any], Any]:
    """The same energy of one flattened point in jax, with the same weights."""
    import jax
    import jax.numpy as jnp

    w = {name: jnp.asarray(value.numpy()) for name, value in energy.state_dict().items()}
    silu = jax.nn.silu

    def banana(x: Any) -> Any:
        return 0.5 * ((x[0] / w["scale"]) ** 2 + (x[1] - w["curvature"] * (x[0] ** 2 - w["scale"] ** 2)) ** 2)

    def gaussian(x: Any) -> Any:
        return 0.5 * jnp.sum((x / w["sd"]) ** 2)

    def schools(x: Any) -> Any:
        mu, log_tau, z = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        misfit = (mu + tau * z - w["effect"]) / w["error"]
        prior = 0.5 * (mu / 5.0) ** 2 + jnp.log1p((tau / 5.0) ** 2) - log_tau + 0.5 * jnp.sum(z**2)
        return prior + 0.5 * jnp.sum(misfit**2)

    def logistic(x: Any) -> Any:
        logit = w["columns"] @ x
        return 0.5 * jnp.sum(x**2) + jnp.sum(jax.nn.softplus(logit)) - jnp.sum(logit * w["outcome"])

    def rings(x: Any) -> Any:
        hidden = silu(w["net.0.weight"] @ x + w["net.0.bias"])
        hidden = silu(w["net.2.weight"] @ hidden + w["net.2.bias"])
        return (w["net.4.weight"] @ hidden + w["net.4.bias"])[0] + 0.5 * w["confinement"] * jnp.sum(x**2)

    def convolution(x: Any, layer: str) -> Any:
        # As nine products of matrices: inside a loop, where samplers run it, XLA's own convolution takes 4 times as
        # long with channels last and 35 times with channels first (jax 0.10.2, a CPU core, 64 images).
        weight = w[f"{layer}.weight"].transpose(2, 3, 1, 0)
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = sum(padded[i : i + 8, j : j + 8] @ weight[i, j] for i in range(3) for j in range(3))
        return silu(out + w[f"{layer}.bias"])

    def digits(x: Any) -> Any:
        hidden = convolution(convolution(x.reshape(8, 8, 1), "first"), "second")
        return (w["last.weight"] @ hidden.sum((0, 1)))[0] + 0.5 * w["confinement"] * jnp.sum(x**2)

    energies = {
        "banana": banana,
        "gaussian": gaussian,
        "schools": schools,
        "logistic": logistic,
        "rings": rings,
        "digits": digits,
    }
    return energies[name]
