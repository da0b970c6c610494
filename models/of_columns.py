"""The model that suits rows of numbers, and the noise of its level 0."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_event, check_number, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.models._scaling import robustly_standardized
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.recovery import RecoveryEBM
from energyppl.potentials.covariance import narrowest_width
from energyppl.schedule import NoiseSchedule

__all__ = ["TRAINED_LOG_SNR_MAX", "model_of_columns", "suited_log_snr_max", "with_noise_that_pays"]


class _Range(NamedTuple):
    """Log-SNRs of the least and the most noise, and how far levels between them are apart on average."""

    log_snr_max: float
    log_snr_min: float
    apart: float


_PLANE = _Range(9.8, -5.1, 2.48)  # one and two columns, as in CDRL: a noise of .0075 of a column's standard deviation
_MORE = _Range(4.6, -6.0, 0.53)  # a noise of .1
TRAINED_LOG_SNR_MAX = 6.6  # up to which tables are trained where held-out rows choose: a noise of .037
_HIGHEST_LOG_SNR = 14.0  # a noise of .001, which float32 still resolves
_VISIBLE = 0.5  # noise at most, over the standard deviation of the narrowest direction
_PAYS = 0.1  # nats a held-out row that less noise must gain, about what training alone leaves of log Z
_TUNED_ROWS = 4096


def model_of_columns(
    columns: int,
    *,
    levels: int | None = None,
    log_snr_max: float | None = None,
    hidden: int = 128,
    depth: int = 3,
) -> RecoveryEBM:
    """Return an untrained model of rows of so many numbers, ``(n, columns)``.

    In one and two columns a network with an output for each level, which ``fit`` trains by recovery likelihood; above a
    network that is continuous in the noise level, trained by score matching.  The latter's schedule is narrower: in
    many columns edges and spikes are too many to be learned to a hundredth of the columns' spread.

    Args:
        columns: how many.
        levels: noise levels; if None 6 in one and two columns and 20 in more, or with another ``log_snr_max`` as many
            as are as far apart.
        log_snr_max: log-SNR of level 0; if None 9.8 in one and two columns and 4.6 in more, a noise of .007 and .1 of
            a column's standard deviation.  :func:`suited_log_snr_max` says what rows need.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.

    Raises:
        InvalidInput: for counts that are not whole numbers of at least 1, or a log-SNR that is not above that of the
            noisiest level.

    Example:
        >>> ep.models.model_of_columns(2).schedule.levels, ep.models.model_of_columns(5).schedule.levels
        (6, 20)
    """
    check_count("columns", columns)
    schedule = _schedule(columns, levels, log_snr_max)
    net = MLPEnergy((columns,), hidden=hidden, depth=depth, levels=schedule.levels if columns <= 2 else None)
    return RecoveryEBM(net, schedule)


def _range(columns: int) -> _Range:
    return _PLANE if columns <= 2 else _MORE


def _schedule(columns: int, levels: int | None, log_snr_max: float | None) -> NoiseSchedule:
    """Build the schedule of so many columns; see :func:`model_of_columns`."""
    usual = _range(columns)
    if levels is not None:
        check_count("levels", levels)
    if log_snr_max is not None:
        check_number("log_snr_max", log_snr_max)
    top = usual.log_snr_max if log_snr_max is None else log_snr_max
    count = levels or max(1, round((top - usual.log_snr_min) / usual.apart))
    return NoiseSchedule.cosine(count, log_snr_max=top, log_snr_min=usual.log_snr_min)


@checked
def suited_log_snr_max(rows: Tensor, *, least: float | None = None) -> float:
    """Return the log-SNR of level 0 that rows need: its noise must not hide the direction in which they vary least.

    Where columns nearly determine each other, a noise that is small beside each column's spread may be many times the
    spread of what is left, and the density of level 0 is as much too wide.

    Args:
        rows: ``(n, columns)``; those with NaN, or with a cell beyond 6 standard deviations, are left out.
        least: the least that is returned; what :func:`model_of_columns` takes by itself if None or less.

    Returns:
        The log-SNR at which the noise is half of the narrowest direction's standard deviation, but at least ``least``
        and at most 14.

    Raises:
        InvalidInput: for rows of another shape, or infinite ones.

    Example:
        >>> x = torch.randn(500, 3)
        >>> ep.models.suited_log_snr_max(x)
        4.6
        >>> x[:, 2] = x[:, :2].sum(1) + 0.001 * torch.randn(500)
        >>> ep.models.suited_log_snr_max(x) > 13.0
        True
    """
    check_event("rows", rows, ())
    if rows.dim() != 2 or not rows.shape[1]:
        raise InvalidInput(f"rows must have shape (n, columns); got {shape_text(rows.shape)}")
    if bool(torch.isinf(rows).any()):
        raise InvalidInput("rows must not be infinite: drop or mend those that are")
    usual = _range(rows.shape[1]).log_snr_max
    usual = usual if least is None else max(usual, least)
    whole = rows[~torch.isnan(rows).any(1)]
    if len(whole) < 2:
        return usual
    visible = _VISIBLE * max(narrowest_width(robustly_standardized(whole)), 1e-6)
    return min(max(usual, -2.0 * math.log(visible)), max(usual, _HIGHEST_LOG_SNR))


def with_noise_that_pays(
    ebm: RecoveryEBM, log_snr_max: float, levels: int | None, rows: Tensor, held_out: Tensor
) -> RecoveryEBM:
    """Return the model on another, noisier schedule, unless held-out rows are clearly likelier on its own.

    They are if the mean gain is above .1 nats and above two standard errors.  How much noise level 0 needs depends on
    the rows: sharp edges and narrow ridges are lost in it, and smooth densities are learned better with it.  Densities
    are those of rows without noise, and as training implies them: log Z is not estimated, which is most often below 0
    at the sharper level, so that more noise is chosen rather than less.  The models share their network.

    Args:
        ebm: trained, its network continuous in the noise level.
        log_snr_max: log-SNR of level 0 of the other schedule.
        levels: of the other schedule, as in :func:`model_of_columns`.
        rows: that trained it, ``(n, columns)``.
        held_out: that did not, ``(m, columns)``.
    """
    schedule = _schedule(rows.shape[1], levels, log_snr_max)
    if float(schedule.log_snr[0]) >= float(ebm.schedule.log_snr[0]):
        return ebm
    noisier = RecoveryEBM(ebm.net, schedule)
    for name, value in ebm.named_buffers(recurse=False):
        noisier.get_buffer(name).copy_(value)
    with torch.no_grad():
        gain = (ebm.implied_log_prob(held_out) - noisier.implied_log_prob(held_out)).double()
    if float(gain.mean()) > max(_PAYS, 2.0 * float(gain.std()) / math.sqrt(len(gain))):
        return ebm
    if len(rows) >= schedule.levels:
        noisier.tune(rows[:_TUNED_ROWS])
    return noisier
