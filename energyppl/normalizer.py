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
        level: that the interval is meant to cover log Z with.
        lower_bound: stochastic lower bound, below log Z on average; None if the method has none.
        upper_bound: stochastic upper bound, likewise.
        effective_samples: of the weights of runs from the base; None if there are none.
        seconds: that it took.
        warning: why not to trust it, in a sentence; None if nothing was noticed.
    """

    estimate: float
    standard_error: float
    lower: float
    upper: float
    evaluations: int
    method: str
    level: float = 0.95
    lower_bound: float | None = None
    upper_bound: float | None = None
    effective_samples: float | None = None
    seconds: float | None = None
    warning: str | None = None

    def __float__(self) -> float:
        """The estimate, so that the value goes wherever a number does."""
        return self.estimate
