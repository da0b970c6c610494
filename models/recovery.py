"""RecoveryEBM: an energy network at every level of a noise schedule, trained by recovery likelihood."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from energyppl._checks import append_dims, check_count, check_data, check_event, check_shape, checked, shape_text
from energyppl.distributions import RecoveryDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.crank_nicolson import CrankNicolson
from energyppl.inference.levels.ancestral import descend_by_denoising
from energyppl.inference.levels.coupling import moves_needed
from energyppl.inference.levels.generation import Generation, LevelTuning, generate, tune_levels
from energyppl.inference.levels.initializers import check_initializer, recovery_proposal
from energyppl.inference.levels.recovery import tilt
from energyppl.inference.objectives.contract import KernelState
from energyppl.inference.objectives.contrastive import FromNegatives
from energyppl.inference.objectives.level_score_matching import LevelScoreMatching
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.models._cache import KnownEnergies, KnownMoves, LevelIntegrals, WeightKeyedCache
from energyppl.models._draws import RecoveryDraws
from energyppl.models._network_checks import check_label
from energyppl.models.base import called_sentence
from energyppl.models.levels import LevelEnergies, default_kernel
from energyppl.potentials.algebra import Potential
from energyppl.potentials.composed import Standardized
from energyppl.schedule import NoiseSchedule

__all__ = ["ConditionView", "RecoveryEBM", "RecoveryView"]

_MOVES, _FEWEST_MOVES = 480, 8  # of a sample through all levels, and at each


class RecoveryEBM(LevelEnergies):
    """Energies U(x, t) at every level of a noise schedule, each the marginal of the noised data at that level.

    The network sees points of about unit variance: data are standardized by ``loc`` and ``scale`` (by ``fit``, or by
    :meth:`standardize`), and divided by the level's own standard deviation.  :meth:`potential` and :meth:`generate` are
    in standardized coordinates, all else in those of the data; the noise of a level is in units of ``scale``.

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

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> noisy = ebm.diffuse(torch.randn(5, 2), level=3)
        >>> ebm.recovery(noisy, level=2).sample().shape, ebm.sample((4,)).shape
        (torch.Size([5, 2]), torch.Size([4, 2]))
    """

    @property
    def default_objective(self) -> type[RecoveryLikelihood] | type[LevelScoreMatching]:
        """Objective of `fit` where none is passed; score matching tied across levels, if the network allows it."""
        return LevelScoreMatching if getattr(self.net, "continuous", False) else RecoveryLikelihood

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        *,
        event_shape: Sequence[int] | None = None,
        kernel: TunableKernel | None = None,
        initializer: nn.Module | None = None,
    ) -> None:
        if getattr(net, "context_shape", None) is not None:
            raise InvalidInput(
                f"the network {type(net).__name__} is told contexts, which a RecoveryEBM has none of: build "
                "ConditionalEBM(net, schedule) of energyppl.models"
            )
        super().__init__(net, schedule, event_shape, default_kernel(net, event_shape) if kernel is None else kernel)
        check_initializer(initializer, self)
        self.initializer = None if initializer is None else initializer.to(self.loc)
        self._known_moves = KnownMoves(self._kept)

    @property
    def denoises(self) -> bool:
        """True if samples come by the energy's own denoiser, as in continuous image networks without initializer."""
        continuous = bool(getattr(self.net, "continuous", False))
        return continuous and len(self.event_shape) == 3 and self.initializer is None

    def given(self, label: int | Tensor, *, guidance: float = 0.0) -> "RecoveryEBM":
        """Return the model of one class, or of each point's own, sharpened by classifier-free guidance.

        Its energy is ``(1 + w) U(x | c) − w U(x)`` at every level (Ho & Salimans 2022), and its initializer's shift
        likewise (Zhu et al. 2024).  It is a view: weights, coordinates and step sizes are this model's.

        Args:
            label: the class, one number or one for each point of the batches to come, ``(*batch,)``; the number of
                classes means "no class".
            guidance: the weight w; 0 is the class's own density, −1 the unconditional one.

        Raises:
            InvalidInput: for a network without classes, or labels out of range.
        """
        return self.view(check_label(self.net, label, guidance), guidance)

    def view(self, condition: Tensor | None, guidance: float = 0.0) -> "RecoveryEBM":
        """Return the model of a condition, or of each row's own, as :meth:`given` does after its checks."""
        return ConditionView(self, condition, guidance)

    @checked
    def recovery(
        self, noisy: Tensor, level: int | Tensor, *, steps: int = 40, contrastive: bool = False
    ) -> RecoveryDistribution:
        """Return p(y | x_{t+1} = noisy), y = α_{t+1} x_t, in data coordinates (Gao et al. 2021, eq. 5).

        Args:
            noisy: ``(*batch, *event)``.
            level: t, one number or one for each point, ``(*batch,)``.
            steps: of the chains that draw from it.
            contrastive: for an observed site while the energy is being learned: ``log_prob`` then has the gradient of
                recovery likelihood, its log Z being that of ``steps`` steps from the value.  Without it ``log_prob``
                refuses and ``unnormalized()`` is the way.
        """
        check_count("steps", steps)
        noisy = check_event("noisy", noisy, self.event_shape).to(self.loc)
        level = self._level_of(noisy, level)
        alpha, sigma = (append_dims(value.to(noisy)[level], noisy) for value in tilt(self.schedule))
        draw = RecoveryDraws(self, noisy, level, alpha, steps)
        return RecoveryDistribution(
            Standardized(self.potential(level), self.loc, self.scale * alpha),
            noisy,
            (sigma * self.scale).expand(noisy.shape),
            sampler=draw,
            log_normalizer=draw.log_z if contrastive else None,
        )

    def guide(self, noisy: Tensor, level: int | Tensor) -> TorchDistribution:
        """Return q(y | x_{t+1} = noisy), the initializer's Gaussian in data coordinates: a guide for :meth:`recovery`.

        Args:
            noisy: ``(*batch, *event)``.
            level: t, one number or one for each point, ``(*batch,)``.

        Raises:
            InvalidInput: if the model has no initializer, or for levels of another batch.
        """
        noisy = check_event("noisy", noisy, self.event_shape).to(self.loc)
        level = self._level_of(noisy, level)
        q = recovery_proposal(self, self.to_unit(noisy), level)
        scale = self.scale * append_dims(tilt(self.schedule)[0].to(noisy)[level], noisy)
        normal = Normal(self.loc + scale * q.base_dist.loc, scale * q.base_dist.scale, validate_args=False)
        guide: TorchDistribution = normal.to_event(len(self.event_shape))
        return guide

    def _level_of(self, noisy: Tensor, level: int | Tensor) -> Tensor:
        self.schedule.check_level(level)
        level = torch.as_tensor(level, device=noisy.device)
        if level.dim() and level.shape != noisy.shape[: noisy.dim() - len(self.event_shape)]:
            raise InvalidInput(
                f"level must be one number or one for each point; got {shape_text(level.shape)} for noisy "
                f"{shape_text(noisy.shape)}"
            )
        return level

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        level: int = 0,
        steps: int | None = None,
        denoise: bool = False,
        micro_batch: int | None = None,
    ) -> Tensor:
        """Return samples ``(*sample_shape, *event)``, made from white noise, level by level down to ``level``.

        Args:
            sample_shape: shape of the batch.
            level: where to stop; 0 is the data.
            steps: of the chains at each level, an evaluation of the energy each; if None those of :attr:`moves`.
                Where the model :attr:`denoises`, its own denoiser draws where they begin, and none are made if None.
            denoise: finish at level 0 with the mean of the clean data (Tweedie).
            micro_batch: samples at a time, so that memory is bounded; all at once if None.
        """
        options = {"level": level, "steps": steps, "denoise": denoise, "micro_batch": micro_batch}
        return self.loc + self.scale * self.generate(sample_shape, **options).x  # type: ignore[arg-type]

    @checked
    def generate(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        level: int = 0,
        steps: int | None = None,
        denoise: bool = False,
        micro_batch: int | None = None,
    ) -> Generation:
        """Sample as :meth:`sample` does, with the path from noise and acceptances, in standardized coordinates."""
        self.schedule.check_level(level)
        shape = check_shape("sample_shape", sample_shape)
        options = {"last": level, "denoise": denoise, "micro_batch": micro_batch}
        if self.denoises:
            return generate(self, shape, steps=steps or 0, descend=descend_by_denoising, **options)  # type: ignore[arg-type]
        return generate(self, shape, steps=self.moves if steps is None else steps, **options)  # type: ignore[arg-type]

    @property
    def moves(self) -> tuple[int, ...]:
        """The moves that a sample makes at each level, from level 0 up, an evaluation of the energy each.

        480 over all of the schedule's levels, at least 8 at each; where :meth:`measure_moves` has found that fewer do
        for these very weights and step sizes, those.  Files and state dicts keep what was found.  Points of at most 4
        numbers take 16 more at each noisy level: chains begin at one of so many draws, chosen by their weights.
        """
        return self._known_moves.find(self) or (self._most_moves,) * self.schedule.levels

    def measure_moves(self) -> tuple[int, ...]:
        """Find how many :attr:`moves` bring each level's chains to their target, and keep it until the weights change.

        Pairs of chains on the same random numbers meet, and the times when they do bound how far a chain is from its
        target (Biswas, Jacob & Vanetti 2019).  No level takes more moves than without measuring.  ``fit`` measures
        once, when training ends.  In one and two dimensions, for chains without a gradient; others keep theirs.

        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((1,)), ep.NoiseSchedule.cosine(levels=3))
        >>> ebm.moves
        (160, 160, 160)
        >>> max(ebm.measure_moves()) < 160
        True
        """
        if isinstance(self.kernel, CrankNicolson) and self._has_grid:
            self._known_moves.keep(self, moves_needed(self, self._most_moves))
        return self.moves

    @property
    def _most_moves(self) -> int:
        return max(_FEWEST_MOVES, round(_MOVES / self.schedule.levels))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        packed = self._known_moves.packed(self)
        if packed is not None:
            destination[prefix + "moves"] = packed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._known_moves.unpack(state_dict.pop(prefix + "moves", None), self.schedule.levels)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @checked
    def tune(self, data: Tensor, kernel: TunableKernel | None = None, *, steps: int = 100) -> LevelTuning:
        """Give the chains another kernel, or the same anew, with a step size tuned at every level.

        Training tunes its own kernel on the way; this is for another one afterwards.

        Args:
            data: rows ``(n, *event)``, some hundreds for each level.
            kernel: the kernel from now on; the present one if None.
            steps: to tune over.
        """
        check_data("data", data, self.event_shape, at_least=self.schedule.levels)
        found = tune_levels(self, self.kernel if kernel is None else kernel, data.to(self.loc), steps)
        self.set_kernel(self.kernel if kernel is None else kernel, found.step_sizes)
        return found

    def implied_log_prob(self, x: Tensor) -> Tensor:
        """Return what the log density would be if log Z were 0, ``(*batch, *event)`` to ``(*batch,)``, in nats.

        Training with a level tie brings log Z near 0 in coordinates of unit variance, so this costs one evaluation and
        no annealing; :meth:`log_prob` subtracts an estimate of log Z with its error, and is what to report.
        """
        points = self.to_unit(check_event("x", x, self.event_shape).to(self.loc))
        log_scale = (self.scale * self.schedule.marginal_std[0].to(self.scale)).log().expand(self.event_shape).sum()
        return -self.potential(0)(points) - log_scale

    def forward(
        self, data: Tensor | None = None, objective: RecoveryLikelihood | None = None, state: KernelState | None = None
    ) -> None:
        """Observe ``data``, ``(n, *event)``, in Pyro: ``SVI`` on it has the gradient of ``fit``, summed over rows.

        Each row is noised to a level and once more; the first is observed given the second, at the site ``clean`` in
        standardized coordinates of x_t.  The objective's other terms are factors, ``level_tie`` and ``masses``.  Use it
        with an empty guide, after :meth:`standardize`.

        Args:
            data: rows; a model that is called without them was taken for a distribution, and says so.
            objective: how pairs and negatives are made; the defaults of :class:`RecoveryLikelihood` if None.
            state: ``objective.init(ebm)``, whose step sizes are adapted at every call (give them to the model by
                :meth:`set_kernel`); without one, chains take the model's own step sizes, which stay as they are.
        """
        if not isinstance(data, Tensor):  # as where pyro.sample draws from what it takes for a distribution
            raise InvalidInput(called_sentence(self))
        data = check_data("data", data, self.event_shape).to(self.loc)
        if not bool(self.is_standardized):
            raise InvalidInput(
                "the model has no coordinates yet: call ebm.standardize(data) once, with all of the data"
            )
        pyro.module("recovery_ebm", self)
        objective = objective or RecoveryLikelihood()
        pairs = objective.pairs(self, data)
        if state is None:
            chain = replace(objective, adapt=False).negatives(KernelState(self.level_kernel), self, pairs)
        else:
            chain = objective.negatives(state, self, pairs)
        own = pairs.potential
        negatives = FromNegatives(chain.state.x)
        site = RecoveryDistribution(own.potential, own.center, own.sigma, log_normalizer=negatives)
        with pyro.plate("data", len(data)):
            pyro.sample("clean", site, obs=pairs.clean)
        if objective.ties:
            with pyro.poutine.scale(scale=float(len(data))):
                pyro.factor("level_tie", -objective.tie * objective.level_tie(self, pairs))
        weight = objective.mass_weight(self)
        if weight and len(data) > 1:
            with pyro.poutine.scale(scale=float(len(data))):
                pyro.factor("masses", -weight * objective.mass_contrast(self, pairs))


class RecoveryView(RecoveryEBM):
    """A model that holds another one and overrides its energy; all else is looked up in the other.

    Weights, coordinates, schedule, kernel and step sizes are the other's, so both move, train and load together.

    Args:
        base: the other model.
        initializer: where recovery chains begin; as without one if None.
    """

    def __init__(self, base: LevelEnergies, initializer: nn.Module | None) -> None:
        nn.Module.__init__(self)
        self.base = cast(RecoveryEBM, base)
        self.initializer = initializer
        self._kept = WeightKeyedCache()
        self._integrals = LevelIntegrals(self._kept)
        self._energies = KnownEnergies()
        self._known_moves = KnownMoves(self._kept)

    def __getattr__(self, name: str) -> Any:
        """Look up in the base what the view itself lacks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(super().__getattr__("base"), name)

    @property
    def denoises(self) -> bool:
        """True if samples come by the energy's own denoiser; a combined energy at a noisy level knows none."""
        return False

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the view's energy at a level, in standardized coordinates."""
        raise NotImplementedError

    @property
    def kernel(self) -> TunableKernel:
        """The kernel that moves the model's chains."""
        return self.base.kernel

    @kernel.setter
    def kernel(self, kernel: TunableKernel) -> None:
        self.base.kernel = kernel


class ConditionView(RecoveryView):
    """A model given a class or a context, or one for each point, with guidance.

    Args:
        base: the model of all conditions.
        condition: what its network is told beside the level; nothing if None.
        guidance: the weight w.
    """

    def __init__(self, base: LevelEnergies, condition: Tensor | None, guidance: float = 0.0) -> None:
        super().__init__(base, base.initializer)
        self.conditions = condition
        self.condition_dims = base.condition_dims
        self.guidance = float(guidance)

    @property
    def denoises(self) -> bool:
        """True if samples come by the energy's own denoiser, as the other model's do."""
        return self.base.denoises

    def given(self, label: int | Tensor, *, guidance: float = 0.0) -> RecoveryEBM:
        """Return the model of another class."""
        return self.base.given(label, guidance=guidance)

    def view(self, condition: Tensor | None, guidance: float = 0.0) -> RecoveryEBM:
        """Return the model of another condition."""
        return self.base.view(condition, guidance)

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the condition's energy at a level, in standardized coordinates."""
        return self._energies.get(self, level, lambda: self.base._at_level(level, self.conditions, self.guidance))
