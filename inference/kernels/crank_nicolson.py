"""Crank–Nicolson kernels for energies with a Gaussian tilt: a recovery distribution is a Gaussian times exp(−U)."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_event, check_positive
from energyppl.autodiff.bound import unbound
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, State, check_force_dtype, dot, evaluate, metropolis
from energyppl.potentials.algebra import Potential, RecoveryPotential

__all__ = ["CrankNicolson", "CrankNicolsonLangevin", "reference"]

_WIDER, _WIDE_SHARE = 4.0, 0.15


@dataclass(frozen=True, eq=False)
class CrankNicolson:
    """Preconditioned Crank–Nicolson (Cotter, Roberts, Stuart & White 2013) under a Gaussian tilt: exact, no gradient.

    With the tilt's Gaussian times N(0, reference_scale²) as the reference N(m, s²), it proposes
    ``m + √(1 − β²) (x − m) + β s ξ``, which leaves the reference as it is, so only the rest of the energy is put to the
    test.  At β = 1 proposals are independent draws from the reference.  In few dimensions, or where a density has edges
    that gradients only stumble over, it mixes far better than MALA; in many dimensions β must shrink and MALA wins.
    Three moves in twenty, drawn at random, take a reference_scale four times as large: the usual one hardly proposes
    what lies five widths out, where a separate mode may.

    Args:
        step_size: β in (0, 1], a number or one for each chain, ``(*chains,)``.
        reference_scale: standard deviation of the wide Gaussian around the origin, a number or ``(*chains,)``; 1 for
            standardized data.

    Raises:
        InvalidInput: for a step size outside (0, 1] or a scale that is not positive; when chains begin, for a potential
            without a Gaussian tilt.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(3), kernel=ep.kernels.CrankNicolson())
        >>> ebm.recovery(torch.zeros(5, 2), level=1, steps=5).sample().shape
        torch.Size([5, 2])
    """

    step_size: float | Tensor = 1.0
    reference_scale: float | Tensor = 1.0
    target_acceptance: ClassVar[float | None] = 0.35
    max_step_size: ClassVar[float] = 1.0
    step_size_limit: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_crank_nicolson(self)

    def with_step_size(self, step_size: float | Tensor) -> "CrankNicolson":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "CrankNicolson":
        """Return the same kernel with β = ``step``, at most 1, and the marginal's spread as its reference."""
        return replace(self, step_size=step.clamp(max=1.0), reference_scale=marginal_std)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the energy at ``x``, ``(*chains, *event)``; no gradient is needed and none is worked out."""
        _require_tilt(self, potential)
        check_event("x", x, potential.event_shape)
        x = x.detach()
        energy, grad = energy_only(potential, x), torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x)
        return State(x, energy, grad, _References.of(self, potential, x))

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a move of the reference for every chain and accept it by the rest of the energy."""
        left = state.inner
        known = isinstance(left, _References) and left.near.kernel is self
        both = left if known else _References.of(self, potential, state.x)
        by = both.wide if float(torch.rand(())) < _WIDE_SHARE else both.near
        old = (state.x - by.mean) / by.deviation
        new = torch.addcmul(by.kept * old, by.beta, torch.randn_like(old))  # both in the reference's own coordinates
        new_x = torch.addcmul(by.mean, by.deviation, new)
        energy = energy_only(potential, new_x)
        log_ratio = torch.sub(state.energy - energy, dot(old - new, old + new, energy), alpha=0.5)
        moved, info = metropolis(log_ratio, State(new_x, energy, state.grad), state)
        return moved._replace(inner=both), info


@dataclass(frozen=True, eq=False)
class CrankNicolsonLangevin:
    """Preconditioned Crank–Nicolson Langevin (pCNL, Cotter, Roberts, Stuart & White 2013) under a Gaussian tilt.

    :class:`CrankNicolson` with the gradient of the rest of the energy in its proposal, which is then
    ``x − (1 − √(1 − β²)) s² ∇U(x) + β s ξ``.  At high noise, where the reference is nearly the target, it draws almost
    independently; at low noise and in many dimensions it is MALA with the tilt's width as its scale.

    Args:
        step_size: β in (0, 1], a number or one for each chain, ``(*chains,)``.
        reference_scale: as in :class:`CrankNicolson`.
        force_dtype: arithmetic of the drift, as in :class:`~energyppl.MALA`: the target stays exact.

    Raises:
        InvalidInput: as :class:`CrankNicolson`.

    Example:
        >>> kernel = ep.kernels.CrankNicolsonLangevin()
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(3), kernel=kernel)
        >>> ebm.recovery(torch.zeros(5, 2), level=1, steps=5).sample().shape
        torch.Size([5, 2])
    """

    step_size: float | Tensor = 0.3
    reference_scale: float | Tensor = 1.0
    force_dtype: torch.dtype | None = None
    target_acceptance: ClassVar[float | None] = 0.6
    max_step_size: ClassVar[float] = 1.0
    step_size_limit: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_crank_nicolson(self)
        check_force_dtype(self.force_dtype)

    def with_step_size(self, step_size: float | Tensor) -> "CrankNicolsonLangevin":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "CrankNicolsonLangevin":
        """Return the same kernel with β = ``step``, at most 1, and the marginal's spread as its reference."""
        return replace(self, step_size=step.clamp(max=1.0), reference_scale=marginal_std)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        _require_tilt(self, potential)
        return evaluate(potential, x, self.force_dtype)._replace(inner=_Proposal.of(self, potential, x))

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a Langevin move of the reference for every chain and accept it by the Metropolis–Hastings rule."""
        by, noise = _proposal(self, potential, state), torch.randn_like(state.x)
        x = torch.addcmul(torch.addcmul(state.x, by.drift, state.grad, value=-1.0), by.size, noise)
        new = evaluate(potential, x, self.force_dtype)
        back = torch.addcmul(state.x - x, by.drift, new.grad) / by.size  # the noise of the way back
        log_ratio = (state.energy - new.energy) + 0.5 * dot(noise - back, noise + back, new.energy)
        moved, info = metropolis(log_ratio, new, state)
        return moved._replace(inner=by), info


class _Proposal(NamedTuple):
    """Constants of a kernel's proposals, the same at every step: broadcastable against the points."""

    kernel: "CrankNicolson | CrankNicolsonLangevin"  # that it is of
    mean: Tensor  # m of the reference
    deviation: Tensor  # s
    beta: Tensor
    kept: Tensor  # √(1 − β²)
    size: Tensor  # β s
    drift: Tensor  # (1 − √(1 − β²)) s²

    @classmethod
    def of(
        cls, kernel: "CrankNicolson | CrankNicolsonLangevin", potential: Potential, x: Tensor, wider: float = 1.0
    ) -> "_Proposal":
        mean, deviation = reference(_require_tilt(kernel, potential), wider * kernel.reference_scale, x)
        beta = _like(kernel.step_size, x)
        kept = (1.0 - beta * beta).sqrt()
        return cls(kernel, mean, deviation, beta, kept, beta * deviation, (1.0 - kept) * deviation * deviation)


class _References(NamedTuple):
    """The two references that a kernel without gradient proposes from."""

    near: _Proposal
    wide: _Proposal

    @classmethod
    def of(cls, kernel: CrankNicolson, potential: Potential, x: Tensor) -> "_References":
        return cls(_Proposal.of(kernel, potential, x), _Proposal.of(kernel, potential, x, wider=_WIDER))


def _proposal(kernel: CrankNicolsonLangevin, potential: Potential, state: State) -> _Proposal:
    """Return what ``init`` or the last step has left in the state, if it is of this very kernel, or work it out."""
    left = state.inner
    return left if isinstance(left, _Proposal) and left.kernel is kernel else _Proposal.of(kernel, potential, state.x)


def _check_crank_nicolson(kernel: "CrankNicolson | CrankNicolsonLangevin") -> None:
    check_positive("step_size", kernel.step_size)
    check_positive("reference_scale", kernel.reference_scale)
    if bool((torch.as_tensor(kernel.step_size) > 1.0).any()):
        raise InvalidInput(f"step_size of {type(kernel).__name__} must lie in (0, 1]; got {kernel.step_size}")


def _require_tilt(kernel: object, potential: Potential) -> RecoveryPotential:
    tilted = unbound(potential)
    if not isinstance(tilted, RecoveryPotential):
        raise InvalidInput(
            f"{type(kernel).__name__} moves on a RecoveryPotential; got {type(tilted).__name__}: use MALA there"
        )
    return tilted


def reference(potential: RecoveryPotential, scale: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of N(0, scale²) under the Gaussian tilt: the recovery of Gaussian data."""
    precision = torch.as_tensor(potential.sigma).to(x) ** -2
    total = precision + _like(scale, x) ** -2
    return potential.center * (precision / total), total.rsqrt()


def _like(value: float | Tensor, x: Tensor) -> Tensor:
    """Return a number, or one for each chain, in the points' dtype and device, broadcastable against them."""
    return append_dims(torch.as_tensor(value).to(x), x)
