"""Maximum likelihood of level 0's readout by chains that begin at data.

Scores of noise tell next to nothing of slow directions: an error that costs a thousandth of the denoising loss lets
chains run downhill for a hundred nats.  Within the exponential family ``exp(−U − tilt · φ)`` of a network's pooled
features φ the likelihood is convex, and at its maximum chains have the moments of data, U's own mean among them.
"""

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, checked
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.kernels.mass import identity_mass
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.network import AtLogSNR

__all__ = ["MomentMatching", "TiltedNetwork", "match_moments"]

_MOVES = 20  # between updates
_RATE, _LARGEST_SHIFT = 0.05, 4.0  # of an update, in the noise's standard deviations
_LIFE = 5000  # moves that a chain makes on average until it begins anew at other data
_IMAGES, _AT_A_TIME = 2000, 200  # the noise of whose moments is the metric
_REFERENCES = 4  # noises of the data where a chain begins, of which the mean moments are what it should keep
_LEAST_VARIANCE = 1e-6  # of a combination of moments, relative to the largest


class TiltedNetwork(Protocol):
    """Network whose energy at log-SNRs from ``tilt_from`` on has a term ``tilt · moments``, such as ``UNetEnergy``."""

    tilt: Tensor  # (moments,), a buffer
    tilt_from: Tensor  # (), a buffer

    def moments(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the features that the tilt weighs, of points ``(*batch, *event)``: ``(*batch, moments)``."""
        ...


class MomentMatching(NamedTuple):
    """Distances of chains' moments from those of the data where they began.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(levels=3))
        >>> found = ep.levels.match_moments(ebm, torch.rand(20, 1, 8, 8), moves=40, chains=4)
        >>> found.shifts.shape
        torch.Size([2, 4])
    """

    shifts: Tensor  # (updates, moments), mean over chains, in standard deviations of the level's noise
    step_size: float  # of the chains


@checked
def match_moments(model: LevelModel, data: Tensor, *, moves: int = 2000, chains: int = 32) -> MomentMatching:
    """Fit the tilt of a model's network at level 0 by maximum likelihood; all other levels stay as they are.

    Chains of MALA begin at data with level 0's noise and go on from update to update (Younes 1999; Tieleman 2008), each
    for 5,000 moves on average.  An update is a natural-gradient step (Amari 1998) in the metric of what fresh noise
    does to the moments, since chains at level 0 don't cross between images; a chain's moments are compared with those
    of its own first image, so that the differences between images are no noise.  The tilt is the mean of the second
    half of the updates.

    Args:
        model: of images, with a network that has a tilt; changed in place.  With classes the tilt, which all share, is
            fitted for no class.
        data: training points, ``(n, *event)``, in data coordinates.
        moves: of each chain, at least 40.
        chains: how many, at least 2.

    Raises:
        InvalidInput: for a network without a tilt, or other data.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(levels=3))
        >>> x = torch.rand(20, 1, 8, 8)
        >>> ebm.standardize(x, isotropic=True)
        >>> found = ep.levels.match_moments(ebm, x, moves=40, chains=4)
        >>> ebm.net.tilt.shape, bool(ebm.net.tilt_from == ebm.schedule.log_snr[0].float())
        (torch.Size([4]), True)
    """
    check_count("moves", moves, at_least=2 * _MOVES)
    check_count("chains", chains, at_least=2)
    if not hasattr(model.net, "tilt"):
        raise InvalidInput(f"{type(model.net).__name__} has no tilt that could be fitted: pass a UNetEnergy's model")
    clean = model.to_unit(check_data("data", data, model.event_shape).to(model.loc))
    net = cast(TiltedNetwork, model.net)
    log_snr = model.schedule.log_snr[0].to(clean)
    net.tilt_from.copy_(log_snr)
    potential = AtLogSNR(model.net, log_snr, model.event_shape)

    def noised(own: Tensor) -> Tensor:
        return model.schedule.diffuse(own, 0) / model.schedule.marginal_std[0].to(own)

    def moments(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net.moments(x, log_snr)

    def begin(count: int) -> tuple[Tensor, Tensor]:
        """Return starts of chains at random data, and the moments that these should keep."""
        own = clean[torch.randint(len(clean), (count,), device=clean.device)]
        return noised(own), torch.stack([moments(noised(own)) for _ in range(_REFERENCES)]).mean(0)

    some = clean[torch.randperm(len(clean), device=clean.device)[:_IMAGES]].split(_AT_A_TIME)
    whiten = _whitening(torch.cat([moments(noised(part)) - moments(noised(part)) for part in some]))
    first = net.tilt.clone()
    x, reference = begin(chains)
    kernel = adapt(MALA(0.05), potential, x, 100, mass=identity_mass).kernel
    white, path, shifts = torch.zeros_like(first), [], []
    for _ in range(moves // _MOVES):
        x = run_chain(kernel, potential, x, _MOVES).state.x
        shift = ((moments(x) - reference) @ whiten).mean(0)
        white = white + _RATE * shift.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT)
        net.tilt.copy_(first + whiten @ white)
        path.append(white)
        shifts.append(shift)
        anew = torch.rand(chains, device=x.device) < _MOVES / _LIFE
        if bool(anew.any()):
            x[anew], reference[anew] = begin(int(anew.sum()))
    net.tilt.copy_(first + whiten @ torch.stack(path[len(path) // 2 :]).mean(0))
    return MomentMatching(torch.stack(shifts), float(kernel.step_size))


def _whitening(change: Tensor) -> Tensor:
    """Return combinations of moments, ``(moments, moments)``, that level 0's noise moves by one and independently.

    Args:
        change: between two noises of the same images, ``(images, moments)``.
    """
    wide = change.double()
    variances, directions = torch.linalg.eigh(0.5 * wide.mT @ wide / len(wide))
    variances = variances + _LEAST_VARIANCE * variances[-1] + torch.finfo(variances.dtype).tiny
    whiten: Tensor = (directions / variances.sqrt()).to(change)
    return whiten
