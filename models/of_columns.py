"""The model that suits rows of numbers, by how many columns they have and how narrowly they lie."""

import math

import torch
from torch import Tensor

from energyppl._checks import check_count, check_number
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.recovery import RecoveryEBM
from energyppl.potentials.covariance import narrowest_width
from energyppl.schedule import NoiseSchedule

__all__ = ["model_of_columns", "suited_log_snr_max"]

_LOG_SNR_MAX, _LOG_SNR_MIN = 6.6, -6.0  # the former is a noise of .037 of a column's standard deviation
_HIGHEST_LOG_SNR = 14.0  # a noise of .001, which float32 still resolves
_APART = 0.53  # between the log-SNRs of neighbouring levels, on average
_VISIBLE = 0.5  # noise at most, over the standard deviation of the narrowest direction


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
    network that is continuous in the noise level, trained by score matching.  The latter's least noise is a compromise:
    with .1 of the columns' standard deviations held-out rows of airfoil, concrete and skillcraft are .4 to 1.6 nats
    less likely, and with .014 the masses of spikes come out wrong where a table has some.

    Args:
        columns: how many.
        levels: noise levels; if None 6 in one and two columns, and above 24, or more if ``log_snr_max`` is higher.
        log_snr_max: log-SNR of level 0; 9.8 in one and two columns and 6.6 above, a noise of .007 and .037 of a
            column's standard deviation, if None.  :func:`suited_log_snr_max` says what rows need.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.

    Raises:
        InvalidInput: for counts that are not whole numbers of at least 1, or a log-SNR that is not above that of the
            noisiest level.

    Example:
        >>> ep.models.model_of_columns(2).schedule.levels, ep.models.model_of_columns(5).schedule.levels
        (6, 24)
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


def suited_log_snr_max(rows: Tensor) -> float | None:
    """Return the log-SNR of level 0 that rows need: its noise must not hide the direction in which they vary least.

    Where columns nearly determine each other, a noise that is small beside each column's spread may be many times the
    spread of what is left, and the density of level 0 is as much too wide.

    Args:
        rows: ``(n, columns)``; those with NaN are left out.

    Returns:
        The log-SNR at which the noise is half of the narrowest direction's standard deviation, between 6.6 and 14;
        None, which is what :func:`model_of_columns` takes by itself, in one and two columns and if rows are too few.

    Example:
        >>> x = torch.randn(500, 3)
        >>> ep.models.suited_log_snr_max(x)
        6.6
        >>> x[:, 2] = x[:, :2].sum(1) + 0.001 * torch.randn(500)
        >>> ep.models.suited_log_snr_max(x) > 13.0
        True
    """
    whole = rows[~torch.isnan(rows).any(1)]
    if rows.shape[1] <= 2 or len(whole) <= rows.shape[1]:
        return None
    visible = _VISIBLE * max(narrowest_width(whole), 1e-6)
    return min(max(_LOG_SNR_MAX, -2.0 * math.log(visible)), _HIGHEST_LOG_SNR)
