"""The model that suits rows of numbers, by how many columns they have and how narrowly they lie."""

import math

import torch
from torch import Tensor

from energyppl._checks import check_count, check_number
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.recovery import RecoveryEBM
from energyppl.potentials.covariance import narrowest_width
from energyppl.schedule import NoiseSchedule

__all__ = ["TRAINED_LOG_SNR_MAX", "model_of_columns", "suited_log_snr_max", "with_noise_that_pays"]

_LOG_SNR_MAX, _LOG_SNR_MIN = 4.6, -6.0  # the former is a noise of .1 of a column's standard deviation
TRAINED_LOG_SNR_MAX = 6.6  # up to which tables are trained where held-out rows choose: a noise of .037
_HIGHEST_LOG_SNR = 14.0  # a noise of .001, which float32 still resolves
_APART = 0.53  # between the log-SNRs of neighbouring levels, on average
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
        levels: noise levels; if None 6 in one and two columns, and above 20, or more if ``log_snr_max`` is higher.
        log_snr_max: log-SNR of level 0; 9.8 in one and two columns and 4.6 above, a noise of .007 and .1 of a
            column's standard deviation, if None.  :func:`suited_log_snr_max` says what rows need.
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
    if levels is not None:
        check_count("levels", levels)
    if log_snr_max is not None:
        check_number("log_snr_max", log_snr_max)
    if columns <= 2:
        count, top = levels or 6, 9.8 if log_snr_max is None else log_snr_max
        net = MLPEnergy((columns,), hidden=hidden, depth=depth, levels=count)
        return RecoveryEBM(net, NoiseSchedule.cosine(count, log_snr_max=top))
    top = _LOG_SNR_MAX if log_snr_max is None else log_snr_max
    count = levels or max(1, round((top - _LOG_SNR_MIN) / _APART))
    net = MLPEnergy((columns,), hidden=hidden, depth=depth)
    return RecoveryEBM(net, NoiseSchedule.cosine(count, log_snr_max=top, log_snr_min=_LOG_SNR_MIN))


def suited_log_snr_max(rows: Tensor, *, least: float = _LOG_SNR_MAX) -> float | None:
    """Return the log-SNR of level 0 that rows need: its noise must not hide the direction in which they vary least.

    Where columns nearly determine each other, a noise that is small beside each column's spread may be many times the
    spread of what is left, and the density of level 0 is as much too wide.

    Args:
        rows: ``(n, columns)``; those with NaN are left out.
        least: the least that is returned.

    Returns:
        The log-SNR at which the noise is half of the narrowest direction's standard deviation, but 14 at most;
        None, which is what :func:`model_of_columns` takes by itself, in one and two columns and if rows are too few.

    Example:
        >>> x = torch.randn(500, 3)
        >>> ep.models.suited_log_snr_max(x)
        4.6
        >>> x[:, 2] = x[:, :2].sum(1) + 0.001 * torch.randn(500)
        >>> ep.models.suited_log_snr_max(x) > 13.0
        True
    """
    whole = rows[~torch.isnan(rows).any(1)]
    if rows.shape[1] <= 2 or len(whole) <= rows.shape[1]:
        return None
    visible = _VISIBLE * max(narrowest_width(whole), 1e-6)
    return min(max(least, -2.0 * math.log(visible)), _HIGHEST_LOG_SNR)


def with_noise_that_pays(ebm: RecoveryEBM, schedule: NoiseSchedule, rows: Tensor, held_out: Tensor) -> RecoveryEBM:
    """Return the model on another, noisier schedule, unless held-out rows are likelier on its own by .1 nats.

    How much noise level 0 needs depends on the rows: sharp edges and narrow ridges are lost in it, and smooth densities
    are learned better with it.  Densities are as training implies them, of rows without noise.  The models share their
    network.

    Args:
        ebm: trained, its network continuous in the noise level.
        schedule: whose level 0 has more noise.
        rows: that trained it, ``(n, columns)``.
        held_out: that did not, ``(m, columns)``.
    """
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
