"""The errors that energyppl raises.

Each is also a ``ValueError`` or a ``RuntimeError``, so code that does not know this library can still catch it.
Messages say what was expected, what came, and what to do.
"""


class EnergyPPLError(Exception):
    """Anything that energyppl raises on purpose; its message is one line, whatever was printed into it."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class InvalidInput(EnergyPPLError, ValueError):
    """An argument has the wrong shape, dtype, range or support."""


class NotNormalized(EnergyPPLError, RuntimeError):
    """A normalized quantity was asked of a density whose normalizing constant is unknown."""


class NotNormalizable(EnergyPPLError, ValueError):
    """The integral of exp(−U) is infinite, so there is no density to normalize."""


class QuadratureError(EnergyPPLError, RuntimeError):
    """A grid can't carry the integral: mass leaks out of the box, or the grid is too coarse."""


class TrainingDiverged(EnergyPPLError, RuntimeError):
    """Training left the region where its numbers mean anything; the message names the step and the quantity."""


class CheckpointError(EnergyPPLError, RuntimeError):
    """A checkpoint is truncated, belongs to another model, or holds what is never loaded (pickled objects)."""


class ChainWarning(UserWarning):
    """Chains that should not be trusted as they are: stuck, not finite, diverging, disagreeing or cut short."""
