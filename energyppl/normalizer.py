"""What an estimate of a normalising constant says."""

from dataclasses import dataclass

__all__ = ["LogNormalizer"]


@dataclass(frozen=True)
class LogNormalizer:
    """log Z = log ∫ exp(−U), in nats, with its uncertainty.

    Attributes:
        estimate: log Z.
        standard_error: of the estimate; for quadrature its own error estimate.
        lower: lower end of the interval.
        upper: upper end of the interval.
        evaluations: how many points the energy was evaluated at.
        method: how it was obtained.
    """

    estimate: float
    standard_error: float
    lower: float
    upper: float
    evaluations: int
    method: str

    def __float__(self) -> float:
        """The estimate, so that the value goes wherever a number does."""
        return self.estimate
