"""What an energy-based model is trained by: values that turn a batch of data into a loss.

Recovery likelihood (Gao et al. 2021, Algorithm 1): noise a data point to level t, once more to level t + 1, and raise
the likelihood of the first given the second.  The gradient is ∇U(x_t) − E[∇U(x)] over the recovery distribution, whose
draws come from a few steps of a kernel.  *Where those chains start decides whether training is stable*: from the noisy
point, chains that stop moving leave an unbounded objective; from the data, which is already an exact draw of the true
recovery distribution, they leave a zero gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.step_size import steer_steps
from energyppl.inference.kernels.contract import (
    Kernel,
    TunableKernel,
    casting,
    check_force_dtype,
    hand_kernel,
    kernel_at,
)
from energyppl.inference.objectives.persistent_chains import Contrast, Roaming, persistent_contrast
from energyppl.inference.sampling.run_chain import Trajectory, run_chain
from energyppl.inference.training._checks import check_model, check_tunable
from energyppl.potentials.algebra import Potential, Tethered, sum_event
from energyppl.schedule import NoiseSchedule

__all__ = [
    "Contrastive",
    "FromNegatives",
    "Loss",
    "Objective",
    "RecoveryLikelihood",
    "RecoveryModel",
    "RecoveryPairs",
    "from_data",
    "from_noisy",
    "level_kernel",
    "recovery_potential",
    "share_levels",
    "share_reaches",
    "tether",
    "tether_widths",
]

_PERSISTENT = 0.25
MEASURE_SEED = 7_482_913  # nobody's: data drawn after manual_seed(0) would be the very noise that seed 0 gives

Start = Callable[[Tensor, Tensor], Tensor]
"""Where the negatives' chains begin: a function of (data y, noisy point), each ``(*batch, *event)``."""


def from_data(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the data point, an exact draw of the true recovery distribution: the stable choice."""
    return data


def from_noisy(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the noisy point, as DRL does: chains then learn to generate, but may run away."""
    return noisy


class RecoveryModel(Protocol):
    """What recovery likelihood needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    event_shape: torch.Size
    schedule: NoiseSchedule
    kernel: TunableKernel
    step_sizes: Tensor  # (levels,), relative to the tether's width; 0 until tuned
    persistent_chains: Tensor  # (slots, *event), see energyppl.inference.persistent
    persistent_steps: Tensor  # (levels,)

    @property
    def unconditional(self) -> Roaming:
        """The model that a given class was asked of, or itself."""
        ...

    def standardized(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which the schedule's noise is counted."""
        ...

    def potential(self, level: Tensor) -> Potential:
        """The energy at each point's level, in those coordinates."""
        ...


class Loss(NamedTuple):
    """A loss to step on, and what to write down about it."""

    value: Tensor  # (), differentiable
    record: dict[str, float]


class RecoveryPairs(NamedTuple):
    """Data at their levels, and what they are to be recovered from."""

    clean: Tensor  # x_t, (n, *event), standardised
    noisy: Tensor  # the noisier marginal, likewise
    level: Tensor  # (n,), t
    upper: Tensor  # (n,), of the noisier marginal: t + 1, or further
    potential: Tethered  # the recovery potential


class Objective(Protocol):
    """A way to train: a frozen value; whatever it learns on the way lives in the model's buffers."""

    def loss(self, model: Any, batch: Tensor) -> Loss:
        """The loss of one batch ``(n, *event)``."""
        ...

    def measure(self, model: Any, data: Tensor) -> float:
        """How well the model does on held-out ``data``: lower is better, and the same for the same weights."""
        ...


@dataclass(frozen=True)
class RecoveryLikelihood:
    """Diffusion recovery likelihood (Gao et al. 2021, Algorithm 1), with one adapted step size for each noise level.

    Args:
        kernel: moves the negatives, and the model's chains from then on; the model's own kernel if None.  Its step size
            counts in widths of a level's tether and is where adaptation begins.
        steps: moves from the start to the negative.
        start: where the negatives' chains begin, ``from_data`` or ``from_noisy``, or any function of (data, noisy).
        adapt: steer each level's step size towards the kernel's target acceptance.
        gain: how fast: log step size moves by ``gain * (acceptance − target)`` at each update.
        extra: share of each batch that goes to level 0 on top of its equal share: it is the sharpest level and the one
            whose density is asked for.
        reach: share of each batch that is recovered from a noisier marginal than the next, any above: its wider tether
            lets chains see, and the training flatten, what the energy does far from the data.
        shared_noise: noise both levels with one ε (CDRL's variance reduction).
        persistent: share of each batch that is also contrasted with persistent chains of the marginals, which find and
            fill what the energy digs far from the data; if None, a quarter above two dimensions and nothing below: in
            the plane tethers reach everywhere, and chains that lag behind a sharp density only disturb.
        autocast: arithmetic of the loss, ``torch.bfloat16`` for networks of images; that of the chains is the kernel's
            ``force_dtype``, and energies that accept or reject keep the weights' own.

    Raises:
        InvalidInput: for steps below one, a share outside [0, 1), a kernel without one step size, or adaptation of one
            that never rejects.
    """

    kernel: TunableKernel | None = None
    steps: int = 5
    start: Start = from_data
    adapt: bool = True
    gain: float = 0.1
    extra: float = 0.25
    reach: float = 0.25
    shared_noise: bool = False
    persistent: float | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_force_dtype(self.autocast, "autocast")
        for name, share in (("extra", self.extra), ("persistent", self.persistent or 0.0)):
            if not 0.0 <= share < 1.0:
                raise InvalidInput(f"{name} must lie in [0, 1); got {share}")
        if self.shared_noise and self.start is from_data:
            raise InvalidInput(
                "with shared_noise the data are no draws of their recovery distributions, so chains must not start "
                "there: pass start=from_noisy or an initializer"
            )
        check_tunable(self.kernel, adapt=self.adapt)

    def prepare(self, model: RecoveryModel) -> None:
        """Give the model the kernel whose step sizes are about to be learned.

        Raises:
            InvalidInput: for another kind of model.
        """
        needs = "recovery likelihood needs a model of levels that are recovered from each other, as a RecoveryEBM"
        check_model(model, needs, "schedule", "kernel", "step_sizes", "persistent_chains", "persistent_steps")
        hand_kernel(model, self.kernel)

    def loss(self, model: RecoveryModel, batch: Tensor) -> Loss:
        """The contrastive loss of ``batch``, ``(n, *event)``; steers ``model.step_sizes`` on the way."""
        pairs = self.pairs(model, batch)
        return self.contrast(model, pairs, self.move(model, pairs), batch)

    def pairs(self, model: RecoveryModel, batch: Tensor) -> RecoveryPairs:
        """Noise a batch ``(n, *event)`` twice, each row to levels of its own."""
        schedule, data = model.schedule, model.standardized(batch)
        level = share_levels(len(data), schedule.levels, self.extra).to(data.device)
        upper = share_reaches(level, schedule.levels, self.reach)
        clean, noisy = schedule.pairs(data, level, upper=upper, shared_noise=self.shared_noise)
        return RecoveryPairs(clean, noisy, level, upper, recovery_potential(model, noisy, level, upper))

    def move(
        self, model: RecoveryModel, pairs: RecoveryPairs, start: Tensor | None = None, *, steer: bool = True
    ) -> Trajectory:
        """Run the model's chains to the negatives, and steer its step sizes if ``steer``.

        They begin at ``start``, ``(n, *event)``, or where :attr:`start` says if None.
        """
        self.prepare(model)
        level = pairs.level
        start = self.start(pairs.clean, pairs.potential.center) if start is None else start
        chain = run_chain(level_kernel(model, level), pairs.potential, start, self.steps)
        if self.adapt and steer:
            near = pairs.upper == level + 1
            kernel = model.kernel
            steer_steps(
                model.step_sizes,
                chain.accept_prob[near],
                level[near],
                self.gain,
                kernel.target,
                largest=kernel.largest_step,
            )
        return chain

    def contrast(self, model: RecoveryModel, pairs: RecoveryPairs, chain: Trajectory, batch: Tensor) -> Loss:
        """Energy of the data less that of the negatives, and the persistent chains' part."""
        moved, level = chain.state.x, pairs.level
        with casting(moved, self.autocast):
            energies = model.potential(level)(torch.stack([pairs.clean, moved]))
        positive, negative = energies.to(moved.dtype).mean(1)
        gap = positive - negative
        width = tether_widths(model.schedule).to(moved)[level]
        record = {
            "energy_gap": float(gap.detach()),
            "acceptance": float(chain.accept_prob.mean()),
            "moved": float(((moved - pairs.clean).flatten(1).norm(dim=1) / width).mean()),
            "smallest_step": float(model.step_sizes.min()),
            "diverging": float(chain.diverging.float().mean()),
        }
        far = self.roam(model, batch)
        if far is None:
            return Loss(gap, record)
        record |= {"persistent_gap": far.gap, "persistent_weight": far.weight}
        return Loss(gap + far.value, record)

    def roam(self, model: Roaming, batch: Tensor) -> Contrast | None:
        """The persistent chains' part of the loss of ``batch``, ``(n, *event)``; None if it has none."""
        share = self.persistent
        if share is None:
            share = _PERSISTENT if math.prod(model.event_shape) > 2 else 0.0
        count = min(int(share * len(batch)), len(model.persistent_chains))
        if not count:
            return None
        far = persistent_contrast(model.unconditional, batch[:count], self.steps, self.autocast)
        return far._replace(value=far.value * (count / len(batch)))

    def measure(self, model: RecoveryModel, data: Tensor) -> float:
        """Denoising score matching, ``mean |σ̄ ∇U(x_t) − ε|² / dimensions`` over the levels above 0 (Vincent 2011).

        A proper score that needs no normaliser; the noise is the same at every call.  Level 0 is left out if there are
        others: at the edges of a sharp density its score is dominated by where exactly an edge lies, and gets worse
        while the density gets better.
        """
        total = 0.0
        clean, generator = model.standardized(data), torch.Generator().manual_seed(MEASURE_SEED)
        judged = range(min(1, model.schedule.levels - 1), model.schedule.levels)
        for t in judged:
            alpha, sigma = model.schedule.alpha_bar[t].to(clean), model.schedule.sigma_bar[t].to(clean)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            level = torch.tensor(t, device=clean.device)
            _, grad = energy_and_grad(model.potential(level), alpha * clean + sigma * noise)
            total += float(((sigma * grad - noise) ** 2).mean())
        return total / len(judged)


def share_levels(count: int, levels: int, extra: float = 0.25) -> Tensor:
    """A level for each of ``count`` rows, in random order: equal shares, and ``extra`` more for level 0.

    Exact shares leave less noise in the gradient than independent draws; the random offset lets every level have its
    turn when there are fewer rows than levels.
    """
    first = int(extra * count)
    rest = (torch.arange(count - first) + torch.randint(levels, ())) % levels
    return torch.cat([torch.zeros(first, dtype=torch.long), rest])[torch.randperm(count)]


def share_reaches(level: Tensor, levels: int, reach: float) -> Tensor:
    """For each row the noisier marginal it is recovered from: the next one, or for a share of rows any above."""
    above = levels - level
    jump = 1 + (torch.rand(level.shape, device=level.device) * above).long()
    return level + torch.where(torch.rand(level.shape, device=level.device) < reach, jump, 1)


def level_kernel(model: RecoveryModel, level: Tensor) -> TunableKernel:
    """The model's kernel at each chain's level."""
    width = tether_widths(model.schedule).to(model.step_sizes)
    spread = model.schedule.spread.to(width)
    return kernel_at(model, level, width[level], spread[level])


def tether_widths(schedule: NoiseSchedule) -> Tensor:
    """Width of each level's tether in the coordinates of x_t, σ_{t+1} / α_{t+1}, ``(levels,)``.

    No wider than the marginal itself: that is the scale of the untethered top level.
    """
    return torch.minimum(schedule.sigma / schedule.alpha, schedule.spread[:-1])


def tether(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """α and σ of each level's tether, ``(levels,)`` each: at an untethered top level α = 1 and σ = ∞ (Gao et al. 2021).

    There x_{t+1} is white noise, where chains only begin.
    """
    alpha, sigma = schedule.alpha.clone(), schedule.sigma.clone()
    if not schedule.tethered_top:
        alpha[-1], sigma[-1] = 1.0, torch.inf
    return alpha, sigma


def recovery_potential(model: RecoveryModel, noisy: Tensor, level: Tensor, upper: Tensor | None = None) -> Tethered:
    """The recovery potential of x_t given a noisier marginal, ``(*batch, *event)``, in the coordinates of x_t = y / α.

    The noisier marginal is ``upper``, t + 1 if None.
    """
    schedule = model.schedule
    if upper is None:
        alpha, sigma = (value.to(noisy)[level] for value in tether(schedule))
    else:
        alpha, sigma = (value.to(noisy) for value in schedule.step(level.cpu(), upper.cpu()))
        if not schedule.tethered_top:
            top = level == schedule.levels - 1
            alpha, sigma = torch.where(top, 1.0, alpha), torch.where(top, torch.inf, sigma)
    sigma = sigma / alpha
    wide = (*alpha.shape, *[1] * (noisy.dim() - alpha.dim()))
    return Tethered(model.potential(level), noisy / alpha.reshape(wide), sigma.reshape(wide))


@dataclass(frozen=True, eq=False)
class FromNegatives:
    """A differentiable log Z for observed values, from draws of the model that are already there.

    Its gradient is −∂U/∂θ at the negatives.  Its *value* is an importance-sampling estimate from the tether,
    log mean exp(−U(x̃ + σ ε)) + log of the tether's own normaliser: unbiased for Z, noisy for log Z.

    Args:
        negatives: draws of the distribution, one for each observed value, ``(*batch, *event)``.
        particles: draws from the tether for the value; a potential without tether has the value 0.
    """

    negatives: Tensor
    particles: int = 16

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Log Z, ``(*batch,)``, in nats."""
        energy = potential(self.negatives)
        with torch.no_grad():
            estimate = self._value(potential, value)
        return estimate + energy.detach() - energy

    def _value(self, potential: Potential, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - len(potential.event_shape)]
        if not isinstance(potential, Tethered):
            return value.new_zeros(batch)
        sigma = torch.as_tensor(potential.sigma).to(value).expand(value.shape)
        points = potential.center + sigma * torch.randn(self.particles, *value.shape).to(value)
        log_mean = torch.logsumexp(-potential.potential(points), 0) - math.log(self.particles)
        estimate = log_mean + sum_event(0.5 * torch.log(2.0 * torch.pi * sigma**2), potential.event_shape)
        return torch.where(torch.isfinite(estimate), estimate, 0.0)  # a top level without tether has no such estimate


@dataclass(frozen=True, eq=False)
class Contrastive:
    """A differentiable log Z that draws its own negatives: see :class:`FromNegatives` for its gradient and value.

    As the ``log_normalizer`` of an observed :class:`~energyppl.distributions.RecoveryDistribution` it gives
    ``log_prob`` the gradient of recovery likelihood, so plain ``pyro.infer.SVI`` trains the energy.

    Args:
        kernel: moves the negatives from the observed value.
        steps: how many moves.
        start: as in :class:`RecoveryLikelihood`.
        particles: as in :class:`FromNegatives`.
    """

    kernel: Kernel
    steps: int = 5
    start: Start = from_data
    particles: int = 16

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Log Z, ``(*batch,)``, in nats."""
        noisy = potential.center if isinstance(potential, Tethered) else value
        moved = run_chain(self.kernel, potential, self.start(value.detach(), noisy), self.steps).state.x
        return FromNegatives(moved, self.particles)(potential, value)
