"""The model that suits rows of numbers, by how many columns they have."""

from energyppl._checks import check_count
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.recovery import RecoveryEBM
from energyppl.schedule import NoiseSchedule

__all__ = ["model_of_columns"]


def model_of_columns(columns: int, *, levels: int | None = None, hidden: int = 128, depth: int = 3) -> RecoveryEBM:
    """Return an untrained model of rows of so many numbers, ``(n, columns)``.

    In one and two columns a network with an output for each level, which ``fit`` trains by recovery likelihood; above a
    network that is continuous in the noise level, trained by score matching.  The latter's schedule is narrower: in
    many columns edges and spikes are too many to be learned to a hundredth of the columns' spread.

    Args:
        columns: how many.
        levels: noise levels; 6 in one and two columns, 20 above, if None.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.

    Raises:
        InvalidInput: for counts that are not whole numbers of at least 1.

    Example:
        >>> ep.models.model_of_columns(2).schedule.levels, ep.models.model_of_columns(5).schedule.levels
        (6, 20)
    """
    check_count("columns", columns)
    if levels is None:
        levels = 6 if columns <= 2 else 20
    check_count("levels", levels)
    if columns <= 2:
        net = MLPEnergy((columns,), hidden=hidden, depth=depth, levels=levels)
        return RecoveryEBM(net, NoiseSchedule.cosine(levels))
    net = MLPEnergy((columns,), hidden=hidden, depth=depth)
    return RecoveryEBM(net, NoiseSchedule.cosine(levels, log_snr_max=4.6, log_snr_min=-6.0))
