"""A multilayer perceptron that is told the noise level and returns an energy."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_number, check_positive, check_shape, checked
from energyppl.errors import InvalidInput
from energyppl.models.networks.conditioning import (
    LogSNRConditioning,
    check_log_snr,
    class_rows,
    level_weight,
    near_gaussian,
    table_rows,
)
from energyppl.models.networks.context import ContextConditioning, ContextGaussian
from energyppl.models.networks.fourier import (
    amplitudes,
    axis_frequencies,
    feature_layers,
    random_frequencies,
    through_layers,
)
from energyppl.models.networks.recipe import Rebuildable
from energyppl.models.networks.scale_mixture import NoisedMixture, ScaleMixture
from energyppl.potentials.bases import Base

__all__ = ["MLPEnergy"]

_MANY = 8  # coordinates


class MLPEnergy(Rebuildable, nn.Module):
    """An energy of points of about unit variance: a perceptron f on Fourier features, modulated by the noise level.

    With a table of ``levels`` it is ``U(x, t) = f(x, t) + ½ confinement |x|²``, t a whole number.  A *continuous*
    network, the default above two dimensions, takes the log-SNR λ: ``U(x, λ) = −log q(x, λ) + (sigmoid λ − sigmoid
    λ_min) f(x, λ)``, q at λ_min, so that its noisiest level is normalized by construction.  It has a derivative in λ,
    and works with any noise schedule.  f grows at most linearly, so every level has a finite normalizer.  The
    modulation by the noise level is computed once while chains run there, and not once a step.
    q is N(0, I), and once a model is standardized a Gaussian with the rows' covariance, noised exactly, at every level;
    each column with a heavy tail, rows beyond 6 standard deviations, has a Gaussian scale mixture in its place, and
    rows in clusters far apart have a Gaussian for each cluster, up to 8 in up to 64 coordinates, without classes.
    Where several directions are narrow and have heavy tails, f counts less where q is far lower than at nearly all
    rows: it would put mass where there are none.

    With a ``context_shape`` it is U(x, λ; c), for :class:`~energyppl.models.ConditionalEBM`: a second perceptron makes
    of a context c the scales and shifts of every layer (FiLM), beside those of the level, and a Gaussian N(m, Σ) in
    place of N(0, I), which is N(α m, α² Σ + σ² I) at the level λ, with correlations up to 16 dimensions; f then is a
    function of points that are standardized by it, and what the density has beyond that Gaussian.

    Args:
        event_shape: shape of one point; any number of dimensions, flattened inside.
        hidden: width of each hidden layer.
        depth: number of hidden layers.
        frequencies: random Fourier features of the input (Tancik et al. 2020); a sharp density needs some.  64 in one
            and two dimensions, none above, if None.
        axis_features: frequencies along each coordinate by itself, for tables: columns have bounds, grids and gaps.
            None in one and two dimensions, 8 above, if None.
        frequency_range: lowest and highest angular frequency, spread evenly on a log scale; 0.2 to 16 in one and two
            dimensions and 0.3 to 12 above if None.
        feature_decay: power by which the amplitude of the features along coordinates falls with their frequency above
            1, so that smooth densities are learned first; 0 leaves all alike. If None 1 for a continuous network of
            more than 8 coordinates without contexts, whose features are many, and 0 else.
        levels: rows of the table of noise levels, at least the schedule's; 64 if None and it is not continuous.
        continuous: whether the noise level is continuous; if None, above two dimensions and where there are contexts,
            unless ``levels`` is given.
        log_snr_min: λ_min of a continuous network.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.
        confinement: strength of the quadratic term, above 0; 1 if the network is continuous.
        context_shape: shape of one context, of about unit variance; a number is the length of a vector.  None for a
            network without.
        context_frequencies: frequencies along each coordinate of a context.
        saturation_radius: distance, in √dimensions, from which f bends towards a constant along every ray, so that it
            digs no holes where no data lie; infinite in one and two dimensions, 2 above, if None.

    Raises:
        InvalidInput: for sizes below one, ``levels`` of a continuous network, frequencies that don't increase, both
            classes and contexts, or a ``confinement`` or ``saturation_radius`` that is not positive.

    >>> net = ep.MLPEnergy((2,), levels=6)
    >>> net(torch.randn(5, 2), torch.tensor(3)).shape
    torch.Size([5])
    """

    @checked
    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: int = 128,
        depth: int = 3,
        frequencies: int | None = None,
        axis_features: int | None = None,
        frequency_range: tuple[float, float] | None = None,
        feature_decay: float | None = None,
        levels: int | None = None,
        continuous: bool | None = None,
        log_snr_min: float = -6.0,
        classes: int = 0,
        confinement: float = 1.0,
        saturation_radius: float | None = None,
        context_shape: int | Sequence[int] | None = None,
        context_frequencies: int = 4,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape, at_least=1)
        plane = math.prod(self.event_shape) <= 2
        if continuous is None:
            continuous = levels is None and (not plane or context_shape is not None)
        frequencies = (64 if plane else 0) if frequencies is None else frequencies
        axis_features = (0 if plane else 8) if axis_features is None else axis_features
        self.levels = levels = table_rows(levels, continuous)
        self.continuous, self.classes, self.confinement = continuous, classes, confinement
        self.saturation_radius = (math.inf if plane else 2.0) if saturation_radius is None else saturation_radius
        check_number("log_snr_min", log_snr_min)
        self.log_snr_min = float(log_snr_min)
        self.context_shape = None if context_shape is None else check_shape("context_shape", context_shape, at_least=1)
        self._check(hidden=hidden, depth=depth, frequencies=frequencies, axis_features=axis_features)
        size = math.prod(self.event_shape)
        limits = frequency_range or ((0.2, 16.0) if plane else (0.3, 12.0))
        parts = [random_frequencies(size, frequencies, limits), axis_frequencies(size, axis_features, limits)]
        self.register_buffer("frequencies", torch.cat(parts, 1))
        if feature_decay is None:
            feature_decay = float(continuous and size > _MANY and context_shape is None)
        check_number("feature_decay", feature_decay)
        amplitude = amplitudes(size, frequencies, parts[1], feature_decay) if feature_decay else None
        self.register_buffer("amplitude", amplitude, persistent=False)
        self.layers = feature_layers(size, self.frequencies.shape[1], hidden, depth)
        # Of each level (scale, shift) of every layer's hidden units; zero leaves the layers as they are.
        modulations = depth * 2 * hidden
        self.film = None if levels is None else nn.Parameter(torch.zeros(levels, modulations))
        self.log_snr_film = LogSNRConditioning(modulations) if levels is None else None
        self.class_film = nn.Parameter(torch.zeros(classes + 1, modulations)) if classes else None
        self.context_film: ContextConditioning | None = None
        if self.context_shape is not None:
            self.context_film = ContextConditioning(
                self.context_shape, modulations, size, frequencies=context_frequencies, hidden=hidden
            )
        self.base: ScaleMixture | None = None
        if self.continuous and context_shape is None:  # classes may be clusters, and each has a density of its own
            self.base = ScaleMixture(size, clustered=not classes)
        self.readout = nn.Linear(hidden, 1)
        if self.continuous:  # it begins as the Gaussian that every level has if nothing is known
            nn.init.zeros_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)

    frequencies: Tensor
    amplitude: Tensor | None

    def _check(self, *, hidden: int, depth: int, **features: int) -> None:
        for name, value in (("hidden", hidden), ("depth", depth)):
            check_count(name, value)
        for name, value in (*features.items(), ("classes", self.classes)):
            check_count(name, value, at_least=0)
        check_positive("confinement", self.confinement)
        check_positive("saturation_radius", self.saturation_radius, or_infinite=True)
        if self.continuous and self.confinement != 1.0:
            raise InvalidInput(
                f"confinement must be 1 for a continuous network; got {self.confinement}: pass levels=… or "
                "continuous=False"
            )
        if self.classes and self.context_shape is not None:
            raise InvalidInput(
                f"a network is told classes or contexts; got classes={self.classes} and context_shape="
                f"{tuple(self.context_shape)}: make the classes columns of the context, one for each"
            )

    def forward(self, x: Tensor, level: Tensor, condition: int | Tensor | None = None) -> Tensor:
        """Evaluate energies in nats.

        Args:
            x: points, ``(*batch, *event)``.
            level: whole levels, or log-SNRs if the network is continuous, ``()`` or ``(*batch,)``.
            condition: classes, likewise, ``classes`` for no class; or contexts, ``(*context_shape)`` or ``(*batch,
                *context_shape)``.  None for no class and no context.

        Returns:
            Energies, ``(*batch,)``.

        Raises:
            InvalidInput: for a label that is out of range, or where there are no classes, contexts of another shape,
                dtype or batch, or whole levels for a continuous network.
        """
        if self.film is None:
            return self._energy(x, self._rows(level), None, level, condition)
        return self._energy(x, self.film, level, None, condition)

    def fit_base(self, rows: Tensor) -> None:
        """Give a continuous network without contexts the clusters, covariance and heavy tails of standardized rows.

        Models call it when they are standardized.

        Args:
            rows: ``(n, *event)``.
        """
        if self.base is not None:
            self.base.fit(rows.reshape(len(rows), -1))

    def noisiest_base(self) -> Base | None:
        """Return the density at λ_min where heavy tails or clusters make it another than about N(0, I), or None."""
        if self.base is None or not (self.base.heavy or self.base.clusters > 1) or len(self.event_shape) != 1:
            return None
        return NoisedMixture(self.base, torch.tensor(self.log_snr_min).to(self.base.variances))

    def at_levels(self, x: Tensor, level: Tensor, log_snr: Tensor, condition: int | Tensor | None = None) -> Tensor:
        """Evaluate a continuous network at whole levels of a table of log-SNRs, whose modulations are worked out once.

        Args:
            x: points, ``(*batch, *event)``.
            level: indices into the table, ``()`` or ``(*batch,)``.
            log_snr: the table, ``(levels,)``.
            condition: as in :meth:`forward`.
        """
        return self._energy(x, self._rows(log_snr), level, log_snr.take(level.long()), condition)

    def proposal(self, context: Tensor | None) -> ContextGaussian:
        """Return the Gaussian that a context gives, beyond which f is what the density has; N(0, I) without a context.

        Args:
            context: ``(*contexts, *context_shape)``.

        Raises:
            InvalidInput: for a network without contexts.
        """
        if self.context_film is None:
            raise InvalidInput("this network is told no context: build it with context_shape=…")
        return self.context_film.base(context)

    def _rows(self, log_snr: Tensor) -> Tensor:
        assert self.log_snr_film is not None
        check_log_snr(log_snr)
        rows: Tensor = self.log_snr_film(log_snr)
        return rows

    def _energy(
        self, x: Tensor, rows: Tensor, level: Tensor | None, log_snr: Tensor | None, condition: int | Tensor | None
    ) -> Tensor:
        """Evaluate energies with modulations ``rows``, of a table of levels if ``level`` is given."""
        x = x.flatten(x.dim() - len(self.event_shape)) if self.event_shape else x.unsqueeze(-1)
        log_scale: float | Tensor = 0.0
        if self.context_film is None:
            asked = class_rows(self.class_film, condition, x.shape[:-1])
        else:
            asked, base = self.context_film(condition, x.shape[:-1], log_snr)
            if log_snr is not None:
                gaussian = base.noised(log_snr)
                x, log_scale = gaussian.standardized(x), gaussian.log_scale
        whole = x
        if self.base is not None and self.base.heavy:
            x = self.base.saturated(x)
        square = (x * x).sum(-1)
        if self.saturation_radius < math.inf:
            x = x * torch.rsqrt(1.0 + square / (self.saturation_radius**2 * x.shape[-1])).unsqueeze(-1)
        modulation = self._modulation(rows, level, asked)
        hidden = through_layers(x, self.frequencies, self.layers, modulation, self.amplitude)
        f: Tensor = self.readout(hidden).squeeze(-1)
        if log_snr is None:
            return f + 0.5 * self.confinement * square
        if self.base is not None:
            known: Tensor = self.base(whole, log_snr)
            weight = level_weight(log_snr, self.log_snr_min)
            if self.base.bounded:
                weight = weight * self.base.weight(known, log_snr)
            return weight * f + known
        return near_gaussian(f, square, log_snr, self.log_snr_min, x.shape[-1]) + log_scale

    def _modulation(self, rows: Tensor, level: Tensor | None, asked: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Split modulations, of a table at ``level`` if it is given, plus those ``asked`` for; yield each layer's."""
        if level is not None and (level.dim() == 0 or level.numel() < len(rows)):
            rows, level = nn.functional.embedding(level, rows), None
        pieces = list(rows.chunk(2 * len(self.layers), -1))
        pieces[0::2] = [1.0 + scale for scale in pieces[0::2]]  # in the table, if it is shorter than the batch
        if level is not None:
            pieces = [nn.functional.embedding(level, piece) for piece in pieces]
        if asked is not None:
            pieces = [piece + more for piece, more in zip(pieces, asked.chunk(len(pieces), -1), strict=True)]
        return zip(pieces[0::2], pieces[1::2], strict=True)
