"""RecoveryEBM: an energy network over a sequence of noise levels, trained by recovery likelihood."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from energyppl._checks import check_data, check_event, shape_text
from energyppl.distributions import RecoveryDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.levels.generation import Generation, LevelTuning, generate, tune_levels
from energyppl.inference.levels.initializers import check_initializer, recovery_proposal, recovery_start
from energyppl.inference.levels.recovery import level_kernel, recovery_potential, tilt
from energyppl.inference.objectives.contrastive import FromNegatives
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.models._cache import LevelIntegrals, WeightKeyedCache
from energyppl.models._network_checks import check_label
from energyppl.models.levels import LevelEnergies, wide
from energyppl.potentials.algebra import Potential
from energyppl.schedule import NoiseSchedule

__all__ = ["RecoveryEBM"]


class RecoveryEBM(LevelEnergies):
    """Energies U(x, t) at every level of a noise schedule, each the marginal of the noised data at that level.

    The network sees points of about unit variance: data are standardized by ``loc`` and ``scale`` (by ``fit``, or by
    :meth:`standardize`), and divided by the level's own standard deviation.  Everything public speaks data coordinates;
    the noise of a level is counted in units of ``scale``.

    Args:
        net: any module ``net(x, level)`` from points ``(*batch, *event)`` and whole levels ``()`` or ``(*batch,)`` to
            energies ``(*batch,)`` in nats, low where data are.
        schedule: the noise levels.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        kernel: moves the chains of the recovery distributions; Crank–Nicolson in few dimensions, with the gradient in
            many, if None.
        initializer: a network, such as ``MLPInitializer``, that says where chains begin; ``CooperativeRecovery`` trains
            it.

    Raises:
        InvalidInput: if the network returns another shape or non-finite values, or has fewer levels than the schedule,
            or the initializer does or has other classes.
    """

    default_objective = RecoveryLikelihood
    step_sizes: Tensor
    persistent_chains: Tensor
    persistent_steps: Tensor
    unconditional: "RecoveryEBM"  # the model that a class was asked of, or itself

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        *,
        event_shape: Sequence[int] | None = None,
        kernel: TunableKernel | None = None,
        initializer: nn.Module | None = None,
    ) -> None:
        super().__init__(net, schedule, event_shape)
        few = math.prod(self.event_shape) <= _FEW_DIMENSIONS
        self.kernel: TunableKernel = kernel or (CrankNicolson() if few else CrankNicolsonLangevin())
        # Step size of each level's chains in widths of its tilt; zero until training has tuned it.
        self.register_buffer("step_sizes", self.loc.new_zeros(schedule.levels))
        self.register_buffer("persistent_chains", self.loc.new_zeros(_SLOTS, *self.event_shape))
        self.register_buffer("persistent_steps", torch.zeros_like(self.step_sizes))
        check_initializer(initializer, self)
        self.initializer = None if initializer is None else initializer.to(self.loc.device)
        self.__dict__["unconditional"] = self  # not a module of its own

    def given(self, label: int | Tensor, *, guidance: float = 0.0) -> "RecoveryEBM":
        """The model of one class, or of each point's own, sharpened by classifier-free guidance (Ho & Salimans 2022).

        Its energy is ``(1 + w) U(x | c) − w U(x)`` at every level, and its initializer's shift likewise (Zhu et al.
        2024).  It shares weights, coordinates and step sizes with this one.

        Args:
            label: the class, one number or one for each point of the batches to come, ``(*batch,)``; the number of
                classes means "no class".
            guidance: the weight w; 0 is the class's own density, −1 the unconditional one.

        Raises:
            InvalidInput: for a network without classes, or labels out of range.
        """
        other = self.with_net(self.net, self.initializer)
        other.label, other.guidance = check_label(self.net, label, guidance).to(self.loc.device), float(guidance)
        return other

    def with_net(self, net: nn.Module, initializer: nn.Module | None) -> "RecoveryEBM":
        """The same coordinates, schedule and step sizes, which are shared, with another energy."""
        other = copy.copy(self)
        # The table of buffers stays one, so that they are still shared after either is moved to another device.
        own = {name: dict(getattr(self, name)) for name in ("_modules", "_parameters")}
        other.__dict__.update(own, _integrals=LevelIntegrals(), _annealed=WeightKeyedCache(), label=None, guidance=0.0)
        other.net, other.initializer = net, initializer
        other.__dict__["unconditional"] = self.unconditional if net is self.net else other
        return other

    def recovery(
        self, noisy: Tensor, level: int | Tensor, *, steps: int = 40, contrastive: bool = False
    ) -> RecoveryDistribution:
        """p(y | x_{t+1} = noisy), y = α_{t+1} x_t, in data coordinates (Gao et al. 2021, eq. 5).

        Args:
            noisy: ``(*batch, *event)``.
            level: t, one number or one for each point, ``(*batch,)``.
            steps: moves of the chains that draw from it.
            contrastive: for an observed site while the energy is being learned: ``log_prob`` then has the gradient of
                recovery likelihood, its log Z being that of ``steps`` moves from the value.  Without it ``log_prob``
                refuses and ``unnormalized()`` is the way.
        """
        noisy = check_event("noisy", noisy, self.event_shape).to(self.loc)
        self.schedule.check_level(level)
        level = torch.as_tensor(level, device=noisy.device)
        if level.dim() and level.shape != noisy.shape[: noisy.dim() - len(self.event_shape)]:
            raise InvalidInput(
                f"level must be one number or one for each point; got {shape_text(level.shape)} for noisy "
                f"{shape_text(noisy.shape)}"
            )
        alpha, sigma = (wide(value.to(noisy)[level], self.event_shape) for value in tilt(self.schedule))
        sigma = sigma * self.scale
        inner = self.potential(level)
        potential = replace(inner, loc=self.loc, scale=self.scale * inner.scale * alpha)

        def sampler(_: Potential, shape: torch.Size, like: Tensor) -> Tensor:
            # Chains run where the tuned step sizes count: in standardized coordinates of x_t.
            points = self.to_unit(noisy).expand(*shape, *self.event_shape)
            levels = level.expand(shape)
            tilted = recovery_potential(self, points, levels)
            start = recovery_start(self, tilted, points, levels)
            x = run_chain(level_kernel(self, levels), tilted, start, steps).state.x
            return (self.loc + self.scale * alpha * x).to(like)

        def log_z(own: Potential, value: Tensor) -> Tensor:
            levels = level.expand(value.shape[: value.dim() - len(self.event_shape)])
            tilted = recovery_potential(self, self.to_unit(noisy).expand(value.shape), levels)
            start = (self.to_unit(value) / alpha).detach()
            moved = run_chain(level_kernel(self, levels), tilted, start, steps).state.x
            return FromNegatives(self.loc + self.scale * alpha * moved)(own, value)

        return RecoveryDistribution(
            potential,
            noisy,
            sigma.expand(noisy.shape),
            sampler=sampler,
            log_normalizer=log_z if contrastive else None,
        )

    def guide(self, noisy: Tensor, level: int | Tensor) -> TorchDistribution:
        """The initializer's q(y | x_{t+1} = noisy), a Gaussian in data coordinates: a Pyro guide for :meth:`recovery`.

        Args:
            noisy: ``(*batch, *event)``.
            level: t, one number or one for each point, ``(*batch,)``.

        Raises:
            InvalidInput: if the model has no initializer.
        """
        noisy = check_event("noisy", noisy, self.event_shape).to(self.loc)
        self.schedule.check_level(level)
        level = torch.as_tensor(level, device=noisy.device)
        q = recovery_proposal(self, self.to_unit(noisy), level)
        scale = self.scale * wide(tilt(self.schedule)[0].to(noisy)[level], self.event_shape)
        normal = Normal(self.loc + scale * q.base_dist.loc, scale * q.base_dist.scale, validate_args=False)
        guide: TorchDistribution = normal.to_event(len(self.event_shape))
        return guide

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        level: int = 0,
        steps: int = 80,
        denoise: bool = False,
        micro_batch: int | None = None,
    ) -> Tensor:
        """Samples ``(*sample_shape, *event)`` from white noise, level by level down to ``level``.

        Args:
            sample_shape: shape of the batch.
            level: where to stop; 0 is the data.
            steps: moves at each level; one evaluation of the energy each.
            denoise: finish at level 0 with the mean of the clean data (Tweedie).
            micro_batch: samples at a time, so that memory is bounded; all at once if None.
        """
        options = {"level": level, "steps": steps, "denoise": denoise, "micro_batch": micro_batch}
        return self.loc + self.scale * self.generate(sample_shape, **options).x  # type: ignore[arg-type]

    def generate(
        self,
        sample_shape: Sequence[int] = (),
        *,
        level: int = 0,
        steps: int = 80,
        denoise: bool = False,
        micro_batch: int | None = None,
    ) -> Generation:
        """As :meth:`sample`, with the path from noise to data and the acceptances, in standardized coordinates."""
        self.schedule.check_level(level)
        shape = torch.Size(sample_shape)
        return generate(self, shape, steps=steps, last=level, denoise=denoise, micro_batch=micro_batch)

    def tune(self, data: Tensor, kernel: TunableKernel | None = None, *, steps: int = 100) -> LevelTuning:
        """Give the chains another kernel, or the same anew, with a step size tuned at every level.

        Training tunes its own kernel on the way; this is for another one afterwards.

        Args:
            data: rows ``(n, *event)``, some hundreds for each level.
            kernel: the kernel from now on; the present one if None.
            steps: moves to tune over.
        """
        check_data("data", data, self.event_shape, at_least=self.schedule.levels)
        found = tune_levels(self, self.kernel if kernel is None else kernel, data.to(self.loc), steps)
        self.kernel = self.kernel if kernel is None else kernel
        self.step_sizes.copy_(found.step_sizes)
        return found

    def forward(self, data: Tensor, recipe: RecoveryLikelihood | None = None) -> None:
        """A Pyro model of ``data``, ``(n, *event)``: ``pyro.infer.SVI`` on it has ``fit``'s gradient, summed over rows.

        Each row is noised to a level and once more; the first is observed given the second.  Use it with an empty
        guide, and call :meth:`standardize` first.  The site is in standardized coordinates of x_t.  In ``eval()`` mode
        the step sizes stay as they are.

        Args:
            data: rows.
            recipe: how pairs and negatives are made; the defaults of :class:`RecoveryLikelihood` if None.
        """
        data = check_data("data", data, self.event_shape).to(self.loc)
        pyro.module("recovery_ebm", self)
        recipe = recipe or RecoveryLikelihood()
        pairs = recipe.pairs(self, data)
        chain, far = recipe.move(self, pairs, steer=self.training), recipe.persistent_term(self, data)
        if far is not None:  # its gradient; its value says nothing
            pyro.factor("persistent", -len(data) * (far.value - far.value.detach()))
        own = pairs.potential
        negatives = FromNegatives(chain.state.x)
        site = RecoveryDistribution(own.potential, own.center, own.sigma, log_normalizer=negatives)
        with pyro.plate("data", len(data)):
            pyro.sample("clean", site, obs=pairs.clean)


_SLOTS = 1024  # persistent chains
_FEW_DIMENSIONS = 4  # up to here proposals from the tilt are accepted so often that a gradient doesn't pay
