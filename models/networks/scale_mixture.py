"""The base density of a table's rows: their clusters, second moments and heavy tails, noised exactly."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.models.networks.clusters import find_clusters
from energyppl.potentials.covariance import shrunk_covariance

__all__ = ["NoisedMixture", "ScaleMixture"]

_COMPONENTS = 6
_CLUSTERS, _CLUSTERED_SIZE = 8, 64  # at most, and coordinates up to which rows are clustered
_NARROWEST = 0.02  # width of a column in a cluster by which far rows are judged
_NARROW = 0.5  # standard deviation along an eigenvector, of columns of 1, below which its tail stays among the rows
_FAR = 6.0  # widths: beyond it a Gaussian column has one row in 500 million
_REACHED = 0.98  # share of the rows within reach
_FALL = 0.5  # reaches beyond it at which a correction counts half
_NO_NOISE = 14.0  # log-SNR at which it is too little to be seen
_ROUNDS = 30  # of expectation maximization
_LARGEST, _MOST_ROWS = 256, 8192  # numbers of a column that all count, and about how many of the others do


class ScaleMixture(nn.Module):
    """A product of centred Gaussian scale mixtures along orthogonal axes, with known normalizer at every noise level.

    A column with a heavy tail is an axis itself, with a mixture of its own: an energy that is Gaussian far out costs a
    row of 20 standard deviations 200 nats; here it costs about what its tail is worth.  All other columns together are
    one Gaussian with the rows' covariance, along its eigenvectors, for a network that has to learn linear dependence
    from N(0, I) stops short of it.

    An eigenvector along which rows hardly vary, less than half of a column's spread, has a mixture too if some row is
    beyond 6 of its widths: the network sees single columns, and to lift such rows it learned energies that put 98 % of
    the mass of 20,000 rows of UCI's protein where there are none.  (Wide tails along all eigenvectors, or for a share
    of the rows in all columns, put mass where there are no rows: log Z of the wines of UCI went up to 4 nats.)

    With several such tails there is much room where this density is hardly low, and what a network adds there is
    extrapolated: from 45,730 rows of protein it learned energies that put up to 98 % of the mass where there are none.
    So corrections have a :meth:`weight` then that falls where this density is far lower than at nearly all rows.  (With
    one tail no mass had been lost, and such weights made autompg's rows less likely by 1.8 nats.)

    Rows in clusters far apart have a Gaussian for each cluster in place of the one.  Training hardly sees the relative
    masses of such clusters: of 50,000 rows in five columns a far one of 1 % had .01 of its mass where the base had one
    Gaussian, .99 with one for each cluster.

    Noise at a log-SNR λ turns a component N(m, v) of an axis into N(α m, α² v + σ²), with α² = sigmoid λ and σ² =
    sigmoid −λ, so the product stays exact at every level.  Before it is fitted it is N(0, I).

    Attributes:
        heavy: whether some column's tail is.
        clusters: how many clusters there are, 1 if none is far from the others.
        bounded: whether corrections have a weight other than 1.

    Args:
        size: number of coordinates.
        clustered: whether to look for clusters, in up to 64 coordinates.
    """

    def __init__(self, size: int, *, clustered: bool = True) -> None:
        super().__init__()
        most = _CLUSTERS if clustered and size <= _CLUSTERED_SIZE else 1
        self.register_buffer("centers", torch.zeros(most, size))
        self.register_buffer("cluster_axes", torch.eye(size).repeat(most, 1, 1))
        self.register_buffer("cluster_variances", torch.ones(most, size))
        self.register_buffer("cluster_weights", torch.zeros(most))
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("variances", torch.ones(size, _COMPONENTS))
        self.register_buffer("log_weights", torch.full((size, _COMPONENTS), -math.log(_COMPONENTS)))
        self.register_buffer("inverse_reach", torch.zeros(()))
        self.heavy, self.clusters, self.bounded = False, 1, False
        self._tailed = (False,) * size  # of each axis, whether it has a mixture

    axes: Tensor  # (size, size), each a column; 0 where a column is in clusters
    variances: Tensor  # (size, components)
    log_weights: Tensor
    centers: Tensor  # (most, size), along the cluster's own axes; like those, of the first clusters, if there are two
    cluster_axes: Tensor  # (most, size, size)
    cluster_variances: Tensor  # (most, size)
    cluster_weights: Tensor  # (most,), 0 of those that there are not
    inverse_reach: Tensor  # () per nat; the reach is the energy above the centre's that 98 % of the rows don't exceed

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Fit a mixture to each column with a row beyond 6 widths, and a Gaussian to the others of each cluster.

        Without clusters a narrow eigenvector with such a row has a mixture as well, and if there are several,
        corrections have a reach.

        The scales of mixtures run from 1 to the farthest row's, evenly on a log scale; weights are found by expectation
        maximization, with one row more that all components share.  A row that some cluster has within 6 of its own
        widths is no tail.

        Args:
            rows: standardized, ``(n, size)``.
        """
        rows = rows.double()
        place = find_clusters(_bent(rows, 2.0 * _FAR), len(self.centers))  # a tail's far rows are no cluster
        clusters = [rows[place == k] for k in range(int(place.max()) + 1)]
        axes, variances = torch.eye(rows.shape[1]).to(rows), torch.ones_like(self.variances).to(rows)
        log_weights = torch.full_like(self.log_weights, -math.log(_COMPONENTS)).to(rows)
        heavy = rows.abs().amax(0) > _FAR
        if len(clusters) > 1:
            heavy &= torch.stack([_widths_away(rows, own) for own in clusters]).amin(0).amax(0) > _FAR
        if bool(heavy.any()):
            scales, log_weights[heavy] = _mixtures(rows[:, heavy].abs())
            variances[heavy] = scales.square()
        light, narrow_tails = (~heavy).nonzero()[:, 0], 0
        self.cluster_weights.zero_()
        if len(clusters) > 1:
            axes[light, light] = 0.0
            for k, own in enumerate(clusters):
                self._fit_cluster(k, own, light, len(own) / len(rows))
        else:
            values, own_axes = torch.linalg.eigh(shrunk_covariance(rows[:, light]))
            axes[light[:, None], light], variances[light] = own_axes, values[:, None]
            along = (rows[:, light] @ own_axes).abs() / values.sqrt()
            tailed = (values.sqrt() < _NARROW) & (along.amax(0) > _FAR)
            narrow_tails = int(tailed.sum())
            if narrow_tails:
                scales, log_weights[light[tailed]] = _mixtures(along[:, tailed])
                variances[light[tailed]] = values[tailed, None] * scales.square()
        for buffer, found in ((self.axes, axes), (self.variances, variances), (self.log_weights, log_weights)):
            buffer.copy_(found)
        self.inverse_reach.zero_()
        self.buffers_changed()
        if narrow_tails > 1:
            self._fit_reach(rows)

    def _fit_cluster(self, k: int, rows: Tensor, light: Tensor, share: float) -> None:
        """Fit a Gaussian to a cluster's columns that have light tails; axes of others are 0 and say nothing."""
        size, mean = rows.shape[1], rows.mean(0)
        axes, variances = rows.new_zeros(size, size), rows.new_ones(size)
        variances[light], axes[light[:, None], light] = torch.linalg.eigh(shrunk_covariance((rows - mean)[:, light]))
        self.cluster_axes[k], self.cluster_variances[k] = axes.to(self.axes), variances.to(self.axes)
        self.centers[k], self.cluster_weights[k] = (mean @ axes).to(self.axes), share

    def _fit_reach(self, rows: Tensor) -> None:
        some, sharp = rows[:: max(1, len(rows) // _MOST_ROWS)].to(self.axes), self.axes.new_tensor(_NO_NOISE)
        reach = (self(some, sharp) - self(torch.zeros_like(some[0]), sharp)).quantile(_REACHED)
        self.inverse_reach.copy_(1.0 / reach.clamp(min=1.0))
        self.buffers_changed()

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, size)`` at log-SNRs ``()`` or ``(*batch,)``, normalized."""
        constant = 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
        if self.clusters == 1:
            return constant + self._axes_energy(x, log_snr)
        energy = self._clusters_energy(x, log_snr)
        return constant + (energy + self._axes_energy(x, log_snr) if self.heavy else energy)

    def weight(self, energy: Tensor, log_snr: Tensor) -> Tensor:
        """Return how much a correction counts at points with these energies, ``(*batch,)``, at log-SNRs as for them.

        1 up to the reach above the centre's energy, half at 1.5 reaches, and falling as the inverse square, so that a
        bounded correction leaves this density as it is far from the rows.
        """
        above: Tensor = energy - self(torch.zeros_like(self.axes[0]), log_snr)
        beyond = (above * self.inverse_reach - 1.0).clamp(min=0.0) / _FALL
        return 1.0 / (1.0 + beyond * beyond)

    def _clusters_energy(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return minus the log of the clusters' densities, without the constant of π."""
        count, size = self.clusters, x.shape[-1]
        signal, noise = log_snr.sigmoid()[..., None, None], (-log_snr).sigmoid()[..., None, None]
        along = (x @ self.cluster_axes[:count].transpose(0, 1).reshape(size, -1)).unflatten(-1, (count, size))
        variance = signal * self.cluster_variances[:count] + noise
        exponent = (along - signal.sqrt() * self.centers[:count]).square() / variance + variance.log()
        log_density: Tensor = self.cluster_weights[:count].log() - 0.5 * exponent.sum(-1)
        return -log_density.logsumexp(-1)

    def _axes_energy(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of the product over axes, likewise; of one whose axis is 0 it is 0."""
        if not self.heavy:
            return self._gaussian_energy(x, self.axes, self.variances[:, 0], log_snr)
        light, heavy = ([axis for axis, own in enumerate(self._tailed) if own == kind] for kind in (False, True))
        energy = self._tails_energy(x, self.axes[:, heavy], self.variances[heavy], self.log_weights[heavy], log_snr)
        if not light:
            return energy
        return energy + self._gaussian_energy(x, self.axes[:, light], self.variances[light, 0], log_snr)

    @staticmethod
    def _gaussian_energy(x: Tensor, axes: Tensor, variances: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of Gaussians along axes ``(size, axes)``."""
        one = log_snr.dim() == 0
        log_snr = log_snr[..., None]
        variance = log_snr.sigmoid() * variances + (-log_snr).sigmoid()
        if one:  # scaled axes cost less than scaled points
            return 0.5 * (x @ (axes * variance.rsqrt())).square().sum(-1) + 0.5 * variance.log().sum()
        return 0.5 * ((x @ axes).square() / variance + variance.log()).sum(-1)

    @staticmethod
    def _tails_energy(x: Tensor, axes: Tensor, variances: Tensor, log_weights: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of scale mixtures along axes ``(size, axes)``, of variances ``(axes, components)``."""
        log_snr = log_snr[..., None, None]
        variance = log_snr.sigmoid() * variances + (-log_snr).sigmoid()
        along = (x @ axes).square().unsqueeze(-1)
        log_density = torch.addcmul(log_weights - 0.5 * variance.log(), along, -0.5 / variance)
        return -log_density.logsumexp(-1).sum(-1)

    def saturated(self, x: Tensor) -> Tensor:
        """Return points whose coordinates bend towards ± 6 widths, so that a far one leaves the others as they are."""
        return _bent(x, _FAR)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "inverse_reach" not in state_dict:  # weights from before there was a reach
            state_dict[prefix + "inverse_reach"] = torch.zeros_like(self.inverse_reach)
        if prefix + "centers" not in state_dict:  # weights from before there were clusters
            kept = {name: getattr(self, name) for name in ("centers", "cluster_axes", "cluster_variances")}
            kept["cluster_weights"] = torch.zeros_like(self.cluster_weights)
            state_dict |= {prefix + name: value for name, value in kept.items()}
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.buffers_changed()

    def buffers_changed(self) -> None:
        """Take notice of buffers that were written from outside, as from another process."""
        tailed = tuple((self.variances[:, -1] > self.variances[:, 0]).tolist())
        if tailed != self._tailed:  # else traces stay as they are
            self._tailed = tailed
        self.heavy = any(tailed)
        self.clusters = max(1, int((self.cluster_weights > 0.0).sum()))
        self.bounded = bool(self.inverse_reach > 0.0)


@dataclass(frozen=True, eq=False)
class NoisedMixture:
    """A :class:`ScaleMixture` at one noise level: a base that runs for log Z begin at.

    Args:
        mixture: of points ``(size,)``.
        log_snr: ``()``.
    """

    mixture: ScaleMixture
    log_snr: Tensor

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.mixture.axes.shape[:1]

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of points ``(*batch, size)``."""
        energies: Tensor = self.mixture(x, self.log_snr)
        return energies

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, size)``."""
        axes, log_weights = self.mixture.axes, self.mixture.log_weights
        component = torch.distributions.Categorical(logits=log_weights).sample((count, 1)).transpose(1, -1)
        variances = self.mixture.variances.expand(count, *log_weights.shape).gather(-1, component)[..., 0]
        widths = (self.log_snr.sigmoid() * variances + (-self.log_snr).sigmoid()).sqrt()
        drawn = (widths * torch.randn_like(widths)) @ axes.T
        return drawn + self._in_clusters(count) if self.mixture.clusters > 1 else drawn

    def _in_clusters(self, count: int) -> Tensor:
        """Draw from the clusters, 0 in columns with heavy tails, ``(count, size)``."""
        mixture, signal = self.mixture, self.log_snr.sigmoid()
        own = torch.distributions.Categorical(mixture.cluster_weights).sample((count,))
        widths = (signal * mixture.cluster_variances[own] + (-self.log_snr).sigmoid()).sqrt()
        along = signal.sqrt() * mixture.centers[own] + widths * torch.randn_like(widths)
        return (mixture.cluster_axes[own] @ along.unsqueeze(-1)).squeeze(-1)


def _bent(x: Tensor, most: float) -> Tensor:
    """Return numbers that bend towards ± ``most``."""
    return x * torch.rsqrt(1.0 + (x / most).square())


def _widths_away(rows: Tensor, cluster: Tensor) -> Tensor:
    """Return how many widths rows ``(n, size)`` lie from a cluster's mean in each column, likewise."""
    mean = cluster.mean(0)
    return (rows - mean).abs() / (cluster - mean).square().mean(0).sqrt().clamp(min=_NARROWEST)


def _mixtures(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a scale mixture to each column of absolute values ``(n, size)``: scales, and log weights of each column."""
    count = len(sizes)
    sizes, counted = _thinned(sizes)
    scales = torch.logspace(0.0, math.log10(float(sizes.max())), _COMPONENTS).to(sizes)
    log_weights = torch.full((sizes.shape[1], _COMPONENTS), -math.log(_COMPONENTS)).to(sizes)
    for _ in range(_ROUNDS):
        joint = log_weights - 0.5 * (sizes.unsqueeze(-1) / scales).square() - scales.log()
        log_weights = (((counted * joint.softmax(-1)).sum(0) + 1.0 / _COMPONENTS) / (count + 1.0)).log()
    return scales, log_weights


def _thinned(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's largest numbers and some of the others, ``(m, size)``, and how many rows each stands for."""
    ordered = sizes.sort(0, descending=True).values
    step = max(1, len(sizes) // _MOST_ROWS)
    kept = torch.cat([ordered[:_LARGEST], ordered[_LARGEST::step]])
    counted = torch.ones(len(kept), 1, 1).to(kept)
    counted[_LARGEST:] = float(max(0, len(sizes) - _LARGEST)) / max(1, len(kept) - _LARGEST)
    return kept, counted
