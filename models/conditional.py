"""ConditionalEBM: energies U(y, t; c) given a context c, as distributions over y for batches of contexts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from energyppl._checks import check_between, check_number, checked, shape_text
from energyppl.autodiff.private import is_transformed
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput, NotNormalized, warn_user
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.objectives.contract import Objective
from energyppl.inference.objectives.proposal_contrastive import suited_objective
from energyppl.integration.batched import Energies, log_integrals, quantiles
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._cache import WeightKeyedCache, known_log_z
from energyppl.models._context import Contexts, context_shapes
from energyppl.models._draws import ContextDraws
from energyppl.models.levels import LevelEnergies, default_kernel
from energyppl.models.recovery import ConditionView, RecoveryEBM
from energyppl.potentials.algebra import Potential, Scaled
from energyppl.potentials.composed import Standardized
from energyppl.schedule import NoiseSchedule

__all__ = ["ConditionalDistribution", "ConditionalEBM"]


class ConditionalEBM(LevelEnergies, dist.ConditionalDistribution):
    """Energies U(y, t; c) of points y given a context c, at every level of a noise schedule.

    A context goes in and a distribution comes out: ``ebm.given(context)`` is one over y for a batch of contexts, with
    their batch shape.  Train it on pairs by ``fit(ebm, (y, context))``, by :attr:`default_objective` or another that
    trains a :class:`RecoveryEBM`.  Contexts are standardized as points are, once.  Of one number the energies are
    multiplied by :attr:`inverse_temperature`, at which ``fit`` finds held-out rows likeliest.

    Args:
        net: any module ``net(y, level, condition)``, as for :class:`RecoveryEBM`, told contexts of about unit variance
            ``(*context_shape)`` or ``(*batch, *context_shape)``, such as ``MLPEnergy(event_shape, context_shape=3)``.
            For guidance ``net(y, level)`` is the energy without a context.
        schedule: the noise levels.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        context_shape: shape of one context; taken from ``net.context_shape`` if there is no encoder.
        encoder: a module that maps contexts ``(n, *context_shape)``, images say, to the features ``(n, *features)``
            that the network is told; it is trained too.
        kernel: moves the chains that draw samples; as in :class:`RecoveryEBM` if None.

    Raises:
        InvalidInput: for a network or encoder that takes or returns another shape, or too few levels.

    Example:
        >>> context = torch.rand(200, 1)
        >>> y = context + 0.1 * torch.randn(200, 1)
        >>> net, schedule = ep.MLPEnergy(1, context_shape=1), ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0)
        >>> ebm = ep.models.ConditionalEBM(net, schedule)
        >>> history = ep.fit(ebm, (y, context), steps=2, progress=False)
        >>> p = ebm.given(torch.tensor([[0.2], [0.5], [0.7]]))
        >>> p.batch_shape, p.sample((4,)).shape, p.log_prob(torch.zeros(3, 1)).shape
        (torch.Size([3]), torch.Size([4, 3, 1]), torch.Size([3]))
    """

    trained_without: Tensor
    tied: Tensor
    inverse_temperature: Tensor
    denoises = False  # samples come by chains

    @property
    def default_objective(self) -> Callable[[], Objective]:
        """Objective of `fit` where none is passed, :func:`suited_objective`."""
        return suited_objective(self)

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        *,
        event_shape: Sequence[int] | None = None,
        context_shape: int | Sequence[int] | None = None,
        encoder: nn.Module | None = None,
        kernel: TunableKernel | None = None,
    ) -> None:
        kernel = default_kernel(net, event_shape) if kernel is None else kernel
        like = next((p for p in net.parameters() if p.dtype.is_floating_point), torch.empty(()))
        if encoder is not None and isinstance(encoder, nn.Module):
            encoder = encoder.to(like)
        self.context_shape, self.feature_shape = context_shapes(net, context_shape, encoder, like)
        self.condition_dims = len(self.feature_shape)
        super().__init__(net, schedule, event_shape, kernel)
        self.initializer = None
        self.contexts = Contexts(self.context_shape, encoder, self.loc)
        for name in ("trained_without", "tied"):  # whether training hid contexts, and whether it had a level tie
            self.register_buffer(name, torch.zeros((), dtype=torch.bool, device=self.loc.device))
        self.register_buffer("inverse_temperature", torch.ones_like(self.loc.sum()))

    def _trial_condition(self) -> tuple[Tensor, ...]:
        return (torch.zeros(3, *self.feature_shape).to(self.loc),)

    def given(self, context: Tensor, *, guidance: float = 0.0) -> "ConditionalDistribution":
        """Return p(y | c), a distribution over y with the batch shape of the contexts.

        Contexts that training came nowhere near are marked by ``is_far`` of the result, and a warning says how many
        they are; those that a chain moves, so that they require a gradient or ``torch.func`` is at work, are not
        looked at.

        Args:
            context: ``(*batch, *context_shape)``, in the units of the training.
            guidance: the weight w of ``(1 + w) U(y; c) − w U(y)`` (Ho & Salimans 2022); 0 is the context's own density.

        Raises:
            InvalidInput: for contexts of another shape or dtype, or that are not finite; for guidance, if the energy
                without a context was never trained (``TrainingOptions.label_drop``).
        """
        check_number("guidance", guidance)
        context = self.contexts.check(context).to(self.loc)
        moved = is_transformed() or context.requires_grad
        if guidance and not bool(self.trained_without):
            raise InvalidInput(
                "guidance needs the energy without a context, which was never trained: hide some contexts in training, "
                "by TrainingOptions(label_drop=0.1)"
            )
        result = self.given_unchecked(context, float(guidance))
        far = 0 if moved else int(result.is_far.sum())
        if far:
            warn_user(
                f"{far} of {result.is_far.numel()} contexts lie nowhere near those that the model was trained with: "
                "what it says there is a guess; is_far of the result marks them"
            )
        return result

    def given_unchecked(self, context: Tensor, guidance: float = 0.0) -> "ConditionalDistribution":
        """Return :meth:`given` of contexts that were checked, or that chains move."""
        return ConditionalDistribution(self, context, guidance)

    def condition(self, context: Tensor) -> "ConditionalDistribution":
        """Return :meth:`given`, as Pyro's ``ConditionalDistribution`` calls it."""
        return self.given(context)

    def conditioned(self, context: Tensor | None, *, guidance: float = 0.0) -> RecoveryEBM:
        """Return the model of a context, or of each row's own, as a :class:`RecoveryEBM`: without checks, for training.

        Args:
            context: ``(*context_shape)``, or ``(*batch, *context_shape)`` for points of that batch; none if None.
            guidance: as in :meth:`given`.
        """
        return self.view(None if context is None else self.contexts.features(context), guidance)

    def view(self, condition: Tensor | None, guidance: float = 0.0) -> RecoveryEBM:
        """Return the model of features that the network is told, ``(*batch, *features)``, or of none."""
        return _ContextView(self, condition, guidance)

    def standardize_context(self, context: Tensor) -> None:
        """Set the contexts' coordinates to training rows ``(n, *context_shape)``; ``fit`` does so.

        Raises:
            InvalidInput: for a coordinate that is constant.
        """
        self.contexts.standardize(context)

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Refuse: an energy needs a context."""
        self._refuse("an energy")

    def sample(self, sample_shape: int | Sequence[int] = (), *, level: int = 0) -> Tensor:
        """Refuse: a sample needs a context."""
        self._refuse("a sample")

    def marginal(self, level: int = 0) -> EnergyDistribution:
        """Refuse: a density needs a context."""
        self._refuse("a density")

    def log_prob(self, x: Tensor) -> Tensor:
        """Refuse: a density needs a context."""
        self._refuse("a density")

    def log_normalizer(self, level: int = 0, **options: Any) -> LogNormalizer:
        """Refuse: log Z needs a context."""
        self._refuse("log Z")

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidInput(f"{what} of a ConditionalEBM needs a context: ask the distribution ebm.given(context)")


class _ContextView(ConditionView):
    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the energy at a level and at the model's temperature, in standardized coordinates."""
        own, factor = super().potential(level), cast(ConditionalEBM, self.base).inverse_temperature
        return own if float(factor) == 1.0 else Scaled(own, factor)


class ConditionalDistribution(EnergyDistribution):
    """p(y | c) of a :class:`ConditionalEBM` for a batch of contexts; made by its ``given``.

    ``log_prob`` is normalized.  In one dimension log Z is integrated for each context; above, it is what training
    implies (by noise-contrastive estimation, or a level tie), 0 in coordinates of unit variance, which costs nothing
    and is about right: check it by :meth:`quadrature` in two dimensions, or by :meth:`anneal`, and put what these find
    in by :meth:`normalized`.

    Args:
        model: the model.
        context: ``(*batch, *context_shape)``.
        guidance: the weight w.
        log_z: log Z of each context in data coordinates, ``(*batch,)``; as above if None.

    Example:
        >>> net, schedule = ep.MLPEnergy(1, context_shape=1), ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0)
        >>> ebm = ep.models.ConditionalEBM(net, schedule)
        >>> _ = ep.fit(ebm, (torch.randn(100, 1), torch.rand(100, 1)), steps=2, progress=False)
        >>> ebm.given(torch.rand(3, 1)).quadrature().shape
        torch.Size([3])
    """

    def __init__(self, model: ConditionalEBM, context: Tensor, guidance: float, log_z: Tensor | None = None) -> None:
        self.model, self.context, self.guidance = model, context, guidance
        self.view = model.conditioned(context, guidance=guidance)
        batch = context.shape[: context.dim() - len(model.context_shape)]
        super().__init__(
            _Broadcast(Standardized(self.view.potential(), model.loc, model.scale), batch),
            sampler=ContextDraws(model, context, guidance),
            log_normalizer=_LogZ(self) if log_z is None else log_z,
            batch_shape=batch,
            like=model.loc,
        )
        self._known: WeightKeyedCache[Tensor] = WeightKeyedCache()

    def __repr__(self) -> str:
        """Summarize in one line."""
        guided = f", guidance {self.guidance:g}" if self.guidance else ""
        return (
            f"ConditionalDistribution(points {shape_text(self.event_shape)} given contexts "
            f"{shape_text(self.context.shape)}{guided})"
        )

    @property
    def is_far(self) -> Tensor:
        """Mask of the contexts that lie nowhere near one of the training, ``(*batch,)``."""
        return self.model.contexts.far(self.context)

    def implied_log_prob(self, y: Tensor) -> Tensor:
        """Return what the log density would be if log Z were 0 in coordinates of unit variance, ``(*batch,)``, nats."""
        return self.view.implied_log_prob(y)

    def implied_log_normalizer(self) -> Tensor:
        """Return the log Z that training with a level tie implies, ``()``: the log of the coordinates' scales."""
        model = self.model
        std = model.schedule.marginal_std[0].to(model.scale)
        return (model.scale * std).log().expand(model.event_shape).sum()

    def quadrature(self, *, strict: bool = True) -> Tensor:
        """Integrate log Z of each context, ``(*batch,)``, in data coordinates: in one and two dimensions.

        Differentiable with respect to weights and contexts; kept until the weights change.

        Raises:
            InvalidInput: for points of more dimensions.
            QuadratureError: if a context's energy is too sharp or too wide for the grid; if not ``strict`` log Z is ∞.
        """
        if not self.model._has_grid:
            raise InvalidInput(
                f"quadrature is for events of one and two dimensions; got {shape_text(self.event_shape)}: use anneal()"
            )
        if not strict:
            return self._integrate(strict=False)
        inputs = [*self.model.parameters(), cast(Tensor, self.view.conditions)]
        return known_log_z(self._known, self.model, self._integrate, inputs)

    def _integrate(self, *, strict: bool = True) -> Tensor:
        size, batch = self.event_shape.numel(), self.batch_shape
        log_z, _ = log_integrals(self._energies(), batch.numel(), size, self.model.loc, strict=strict)
        return (log_z + self.model.scale.log().expand(self.event_shape).sum()).reshape(batch)

    def _energies(self) -> Energies:
        """Return the energies of some of the contexts at points of unit variance."""
        assert self.view.conditions is not None
        rows = self.view.conditions.reshape(self.batch_shape.numel(), *self.model.feature_shape)

        def energy(points: Tensor, some: Tensor) -> Tensor:
            return self.model.view(rows[some], self.guidance).potential()(points)

        return energy

    @checked
    def quantiles(self, probabilities: Tensor | Sequence[float]) -> Tensor:
        """Return quantiles of events of one dimension, ``(*probabilities, *batch)``, in data coordinates.

        Args:
            probabilities: between 0 and 1, ``(*probabilities)``.

        Raises:
            InvalidInput: for points of more dimensions, or numbers outside [0, 1].
            QuadratureError: as :meth:`quadrature`.
        """
        if self.event_shape != (1,):
            raise InvalidInput(
                f"quantiles are for events of shape (1,); got {shape_text(self.event_shape)}: sample() and take those "
                "of each coordinate"
            )
        wanted = torch.as_tensor(probabilities)
        if not bool(((wanted >= 0.0) & (wanted <= 1.0)).all()):
            raise InvalidInput(f"probabilities must lie in [0, 1]; got {wanted.tolist()}")
        ranks = wanted.reshape(wanted.numel(), *[1] * len(self.batch_shape))
        return self._at_ranks(ranks).reshape(*wanted.shape, *self.batch_shape)

    def _at_ranks(self, ranks: Tensor) -> Tensor:
        """Return the quantile of each context at its own ranks, ``(n, *batch)`` or what broadcasts to that."""
        count = self.batch_shape.numel()
        each = ranks.expand(len(ranks), *self.batch_shape).reshape(len(ranks), count)
        found = quantiles(self._energies(), count, self.model.loc, each)
        return self.model.from_unit(found).reshape(len(ranks), *self.batch_shape)

    def interval(self, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
        """Return the ends of central intervals, ``(*batch,)`` each, for events of one dimension.

        They are of the density of level 0, which has that level's noise.

        Raises:
            InvalidInput: for points of more dimensions, or a confidence outside (0, 1).
        """
        check_between("confidence", confidence, 0.0, 1.0)
        tail = 0.5 * (1.0 - confidence)
        low, high = self.quantiles(torch.tensor([tail, 1.0 - tail]))
        return low, high

    def anneal(self, **options: Any) -> list[LogNormalizer]:
        """Estimate log Z of each context by annealing, with intervals: minutes for many, so ask for a few.

        Args:
            options: ``method``, ``tolerance``, ``max_evaluations``, ``confidence`` and ``progress``, as in
                :meth:`RecoveryEBM.log_normalizer`.

        Returns:
            One for each context, in the order of the flattened batch, in data coordinates.
        """
        contexts = self.context.reshape(-1, *self.model.context_shape)
        views = (self.model.conditioned(one, guidance=self.guidance) for one in contexts)
        return [view._anneal(0, **_annealing_options(options)) for view in views]

    def normalized(self, log_z: "Tensor | Sequence[LogNormalizer]") -> "ConditionalDistribution":
        """Return the same distribution with log Z of each context, ``(*batch,)``, or as :meth:`anneal` found them."""
        if not isinstance(log_z, Tensor):
            log_z = torch.tensor([one.estimate for one in log_z]).reshape(self.batch_shape)
        return ConditionalDistribution(self.model, self.context, self.guidance, log_z.to(self.model.loc))


def _annealing_options(options: dict[str, Any]) -> dict[str, Any]:
    usual = {"method": None, "samples": None, "tolerance": None, "max_evaluations": None}
    return usual | {"confidence": 0.95, "progress": False} | options


@dataclass(frozen=True, eq=False)
class _Broadcast:
    """Energies of a batch of contexts, at points whose batch broadcasts to theirs."""

    potential: Potential
    batch: torch.Size

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of points ``(*draws, *batch, *event)``."""
        own = x.shape[: x.dim() - len(self.event_shape)]
        try:
            batch = torch.broadcast_shapes(own, self.batch)
        except RuntimeError:
            raise InvalidInput(
                f"points must broadcast to the contexts' batch {shape_text(self.batch)}; got a batch of "
                f"{shape_text(own)}: pass one point for each context, or draws (*draws, *batch, *event)"
            ) from None
        return self.potential(x.expand(*batch, *self.event_shape))


@dataclass(frozen=True, eq=False)
class _LogZ:
    """log Z of each context, by quadrature in one dimension and implied above."""

    of: ConditionalDistribution = field(repr=False)

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        if self.of.event_shape.numel() == 1 and self.of.model._has_grid:
            return self.of.quadrature()
        if self.of.guidance:
            raise NotNormalized(
                "guided energies have no log Z that training implies: pass dist.normalized(dist.anneal()), or ask for "
                "dist.unnormalized() where it cancels"
            )
        if not bool(self.of.model.tied):
            raise NotNormalized(
                "log Z of each context is implied by a level tie, without which the model was trained: pass "
                "dist.normalized(dist.anneal()), or ask for dist.unnormalized() where it cancels"
            )
        return self.of.implied_log_normalizer()
