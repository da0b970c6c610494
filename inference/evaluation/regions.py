"""Relative masses of regions: a density's beside those of its samples and of data."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, check_event, checked
from energyppl._seeds import seeded
from energyppl.errors import InvalidInput, NotNormalizable, QuadratureError, warn_user
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.normalizing.forward import independent_runs
from energyppl.inference.normalizing.methods import SMC
from energyppl.inference.objectives.held_out import MEASURE_SEED
from energyppl.potentials.bases import MixtureBase
from energyppl.potentials.mixture_fit import spread_out

__all__ = ["RegionMasses", "region_masses", "warn_of_masses"]

_FALSE_ALARMS = 1e-3  # of all comparisons of one call together
_RATIO = 1.25  # of two masses, below which a difference is small, however certain
_CLUSTERED = 10_000  # points that the regions are found from, at most
_RESOLUTION = 1e-4  # smallest share that the density's points resolve
_PARTICLES = 4096
_FEWEST, _REGIONS = 100, 16  # rows, and regions


@dataclass(frozen=True, eq=False)
class RegionMasses:
    """The share of each region in a density's mass, in its samples and in data.

    Attributes:
        centers: of the regions, ``(regions, *event)``, in data coordinates; a point belongs to the nearest one, counted
            in the model's standardized coordinates.
        density: shares of the density, ``(regions,)``, float64, likewise all that follow.
        density_error: their standard errors; 0 from a grid.
        samples: shares of the model's samples.
        data: shares of the data.
        rows: how many samples and how many data were counted; where there are no samples their shares are 0.
        runs: how many independent runs the density's errors come from.

    Example:
        >>> half = torch.tensor([0.5, 0.5], dtype=torch.float64)
        >>> centers, zero = torch.tensor([[-1.0], [1.0]]), torch.zeros(2, dtype=torch.float64)
        >>> found = ep.evaluation.RegionMasses(centers, half, zero, half, half, rows=(1000, 1000))
        >>> round(found.gap, 3), found.problems()
        (0.0, [])
    """

    centers: Tensor
    density: Tensor
    density_error: Tensor
    samples: Tensor
    data: Tensor
    rows: tuple[int, int]
    runs: int = 1

    @property
    def gap(self) -> float:
        """KL divergence of the density's masses from the data's, in nats.

        It is a lower bound of the divergence of the densities themselves, and above 0 by (regions − 1) / (2 rows) for
        a perfect model, since the data are a sample.  A mass below 1e-4 counts as 1e-4.
        """
        held = self.data > 0
        return float((self.data[held] * (self.data[held] / self.density[held].clamp(min=_RESOLUTION)).log()).sum())

    def problems(self, describe: Callable[[Tensor], str] | None = None) -> list[str]:
        """Say where the masses differ, the largest first, in words; empty if they agree.

        They differ where the larger one is 1.25 times the smaller one or more, and their difference cannot be chance:
        the rate of false alarms is 1 in 1,000 for all comparisons together.

        Args:
            describe: names a region by its centre, ``(*event)``; its first coordinates are listed if None.
        """
        drawn, rows = self.rows
        found = []
        for place in range(len(self.density)):
            own, error = float(self.density[place]), float(self.density_error[place])
            others = (("samples", float(self.samples[place]), drawn), ("data", float(self.data[place]), rows))
            said = [
                f"{count:.2%} of the {name}"
                for name, count, number in others
                if number and self._differ(own, error, count, number)
            ]
            if said:
                where = (describe or _first_coordinates)(self.centers[place])
                text = f"near {where} lie {own:.2%} of the density's mass but {' and '.join(said)}"
                found.append((max(abs(own - count) for _, count, _ in others), text))
        return [text for _, text in sorted(found, reverse=True)]

    def _differ(self, own: float, error: float, share: float, number: int) -> bool:
        """Tell whether a share of ``number`` points differs from the density's."""
        from scipy.special import stdtrit  # takes half a second to import

        larger, smaller = max(own, share), min(own, share)
        if larger < _RATIO * smaller or larger == 0.0:
            return False
        counted = math.sqrt(larger * (1.0 - larger) / number)
        both = math.hypot(error, counted)
        # Errors from few runs make it Student's t, with Welch's and Satterthwaite's degrees of freedom.
        freedom = (self.runs - 1) * (both / error) ** 4 if error > 0.0 else math.inf
        return larger - smaller > float(stdtrit(freedom, 1.0 - _FALSE_ALARMS / (4 * len(self.density)))) * both


def _first_coordinates(center: Tensor) -> str:
    first = ", ".join(f"{value:.3g}" for value in center.flatten()[:8].tolist())
    return f"({first}{', …' if center.numel() > 8 else ''})"


@checked
def region_masses(
    model: EnergyModel,
    data: Tensor,
    *,
    samples: Tensor | None = None,
    regions: int = _REGIONS,
) -> RegionMasses:
    """Compare how much mass a model's density, its samples and data have in the same regions.

    Objectives that compare a point with its neighbourhood, as recovery likelihood and score matching do, hardly see the
    relative masses of regions far from each other, and samples made from noise need not have those of the density.  The
    regions are clusters of data and samples together, by k-means.  The density's masses come from a grid up to two
    dimensions, else from eight runs of sequential Monte Carlo, which begin at a mixture of Gaussians fitted to the same
    points and so reach every region.

    Args:
        model: such as a ``RecoveryEBM``.
        data: clean rows, ``(n, *event)``, as many as there are; they get the noise of level 0 here.
        samples: of the model's level 0, ``(m, *event)``, in data coordinates; as many as data, 10,000 at most, are
            drawn if None.
        regions: how many, at most.

    Raises:
        InvalidInput: for fewer than 100 rows, or points of another shape.

    Example:
        >>> data = ep.toys.TwoMoons().sample((500,)).float()
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16), ep.NoiseSchedule.cosine(levels=3))
        >>> _ = ep.fit(ebm, data, steps=20, progress=False)
        >>> found = ep.evaluation.region_masses(ebm, data, regions=4)
        >>> len(found.density), round(float(found.density.sum()), 3)
        (4, 1.0)
    """
    check_data("data", data, model.event_shape, at_least=_FEWEST)
    check_count("regions", regions, at_least=2)
    if samples is None:
        samples = model.sample((min(len(data), _CLUSTERED),))
    check_event("samples", samples, model.event_shape)
    drawn = model.to_unit(samples).flatten(1).double().cpu()
    drawn = drawn[torch.isfinite(drawn).all(1)]
    if len(drawn) == 0:
        raise InvalidInput("samples must hold finite rows; got none: train the model anew, or pass others")
    return _compared(model, data, drawn, regions)


def warn_of_masses(model: EnergyModel, data: Tensor) -> None:
    """Warn, where a grid tells it, if the density of a model of levels has other masses by region than its data.

    Objectives that compare a point with its neighbourhood hardly see such masses, nor do the curves of a run.  Above
    two dimensions :func:`region_masses` and ``log_normalizer`` tell, at the price of annealing.

    Args:
        model: trained.
        data: of its training, ``(n, *event)``.
    """
    conditional = getattr(model, "conditions", None) is not None or bool(getattr(model, "context_shape", ()))
    if getattr(model, "schedule", None) is None or conditional or len(data) < _FEWEST:
        return
    if len(model.event_shape) != 1 or model.event_shape[0] > 2:
        return
    try:
        with seeded(MEASURE_SEED):
            nothing = torch.zeros(0, *model.event_shape, dtype=torch.float64)
            said = _compared(model, data, nothing, _REGIONS).problems()
    except (NotNormalizable, QuadratureError):  # whoever asks for a density is told
        return
    if said:
        warn_user(
            f"the density's masses by region are not the data's: {said[0]} (energyppl.evaluation.region_masses "
            "compares all regions, and samples too)"
        )


def _compared(model: EnergyModel, data: Tensor, drawn: Tensor, regions: int) -> RegionMasses:
    """Compare the masses of a density with those of data and of samples, standardized, ``(m, dimensions)``, if any."""
    rows = model.to_unit(model.diffuse(data.to(model.loc), 0)).flatten(1).double().cpu()
    pooled = torch.cat([_some(rows), _some(drawn)])
    centers = _clusters(pooled, regions)
    density, error, runs = _density_shares(model, centers, pooled)
    unit = centers.to(model.loc).reshape(-1, *model.event_shape)
    return RegionMasses(
        centers=(model.loc + model.scale * unit).cpu(),
        density=density,
        density_error=error,
        samples=_counts(drawn, centers) / max(1, len(drawn)),
        data=_counts(rows, centers) / len(rows),
        rows=(len(drawn), len(rows)),
        runs=runs,
    )


def _some(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows))[: _CLUSTERED // 2]]  # rows may be sorted


def _clusters(points: Tensor, count: int) -> Tensor:
    """Find centres of clusters, ``(clusters, dimensions)``, by k-means begun by k-means++."""
    from scipy.cluster.vq import kmeans2  # takes half a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of clusters that lost all of their points: they are left out
        centers, place = kmeans2(points.numpy(), spread_out(points, count).numpy(), minit="matrix")
    return torch.as_tensor(centers[np.unique(place)])


def _counts(points: Tensor, centers: Tensor) -> Tensor:
    """Count the points ``(n, dimensions)`` of each region, ``(regions,)``."""
    return torch.bincount(_nearest(points, centers), minlength=len(centers)).double()


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(points, centers).argmin(1)


def _density_shares(model: EnergyModel, centers: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the regions' shares of the density, their standard errors, ``(regions,)`` each, and the number of runs."""
    on_grid = model.grid_points(0) if hasattr(model, "grid_points") else None
    if on_grid is not None:
        shares = _counts(on_grid.flatten(1).double().cpu(), centers) / len(on_grid)
        return shares, torch.zeros(len(centers), dtype=torch.float64), 1
    base = MixtureBase.fitted(pooled.to(model.loc).reshape(-1, *model.event_shape), model.event_shape)
    found = independent_runs((model.potential(0),), base, SMC(), _PARTICLES)
    runs, particles = found.log_weights.shape
    place = _nearest(found.x.flatten(0, 1).flatten(1).double().cpu(), centers).reshape(runs, particles)
    weights = torch.exp(found.log_weights - found.log_weights.max()).double().cpu()
    masses = weights.new_zeros(runs, len(centers)).scatter_add_(1, place, weights)  # of each run
    total = masses.sum(1, keepdim=True)
    share = masses.sum(0) / total.sum()
    # The error of a ratio of means over independent runs, by the delta method.
    error = (masses - share * total).std(0) / (math.sqrt(runs) * total.mean())
    # Of many errors from eight runs each some are too small by chance: none is believed below their common size.
    binomial = share * (1.0 - share)
    common = (error.square() / binomial.clamp(min=1e-12)).mean()
    return share, torch.maximum(error, (binomial * common).sqrt()), runs
