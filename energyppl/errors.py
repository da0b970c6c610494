"""The errors that energyppl raises.

Each is also a ``ValueError`` or a ``RuntimeError``, so code that does not know this library can still catch it.
Messages say what was expected, what came, and what to do.
"""

import sys
import warnings

_BETWEEN = ("energyppl", "torch", "pyro", "contextlib", "functools")  # a warning and the user's own line


class EnergyPPLError(Exception):
    """Base of all errors that energyppl raises on purpose; the message is one line, whatever was printed into it.

    Example:
        >>> issubclass(ep.InvalidInput, ep.EnergyPPLError), issubclass(ep.InvalidInput, ValueError)
        (True, True)
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or its kind if it says nothing.

    Example:
        >>> ep.errors.first_line(ValueError("one\ntwo")), ep.errors.first_line(ValueError())
        ('one', 'ValueError')
    """
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's own line: the innermost that is not of energyppl, nor of torch or Pyro in between.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     ep.errors.warn_user("chains are few", ep.errors.ChainWarning)
        >>> str(caught[0].message)
        'chains are few'
    """
    frame, depth = sys._getframe(1), 2  # as warnings counts
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)


class InvalidInput(EnergyPPLError, ValueError):
    """Error of an argument with the wrong shape, dtype, range or support.

    Example:
        >>> ep.MLPEnergy((2,), hidden=0)
        Traceback (most recent call last):
            ...
        energyppl.errors.InvalidInput: hidden must be a whole number of at least 1; got 0
    """


class NotNormalized(EnergyPPLError, RuntimeError):
    """Error of a normalized quantity that was asked of a density whose normalizing constant is unknown.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.EnergyDistribution(normal).log_prob(torch.zeros(2))
        Traceback (most recent call last):
            ...
        energyppl.errors.NotNormalized: ...
    """


class NotNormalizable(EnergyPPLError, ValueError):
    """Error of an energy whose integral of exp(−U) is infinite: there is no density to normalize.

    Example:
        >>> flat = ep.Energy(lambda x: 0.0 * x.sum(-1), (3,))
        >>> ep.log_normalizer(flat, samples=torch.randn(200, 3))
        Traceback (most recent call last):
            ...
        energyppl.errors.NotNormalizable: ...
    """


class QuadratureError(EnergyPPLError, RuntimeError):
    """Error of a grid that can't carry the integral: mass leaks out of the box, or the grid is too coarse.

    Example:
        >>> flat = ep.Energy(lambda x: 0.0 * x.sum(-1), (1,))
        >>> ep.quadrature(flat, ep.Grid((-1.0,), (1.0,), (64,)))
        Traceback (most recent call last):
            ...
        energyppl.errors.QuadratureError: ...
    """


class TrainingDiverged(EnergyPPLError, RuntimeError):
    """Error of training that diverged; the message names the step and the quantity.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> strict = ep.TrainingOptions(max_gap=1e-9)
        >>> ep.fit(ebm, torch.randn(100, 2), options=strict, progress=False)
        Traceback (most recent call last):
            ...
        energyppl.errors.TrainingDiverged: training diverged at step 0: the energy gap is ... nats ...
    """


class CheckpointError(EnergyPPLError, RuntimeError):
    """Error of a checkpoint that is damaged, of another model, or holds what is never loaded (pickled objects).

    Example:
        >>> ep.load_checkpoint("there_is_no_such_file.ckpt")
        Traceback (most recent call last):
            ...
        energyppl.errors.CheckpointError: ...
    """


class ChainWarning(UserWarning):
    """Warning of chains not to trust as they are: stuck, not finite, diverging, disagreeing or cut short.

    Example:
        >>> import warnings
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     chains = ep.sample_chains(ep.MALA(1e-6), normal, chains=4, draws=60, warmup=0, progress=False)
        >>> caught[0].category.__name__
        'ChainWarning'
    """
