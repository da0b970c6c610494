"""Annealing methods: AIS, SMC, reverse AIS and the bridge of both directions, with their settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from energyppl._checks import check_count, check_fields
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.composite import Cycle, Mixture, Tempered
from energyppl.inference.kernels.contract import Kernel, check_kernel
from energyppl.inference.kernels.langevin import MALA, Langevin
from energyppl.inference.normalizing.planning import check_temperatures
from energyppl.potentials.algebra import Potential

__all__ = ["AIS", "BAR", "SMC", "Annealing", "ReverseAIS"]

ISLANDS = 8  # of a forward run's particles, for its standard error


@dataclass(frozen=True, eq=False)
class Annealing:
    """Settings of annealing that AIS, SMC, reverse AIS and BAR share.

    Args:
        particles: of a batch of runs, in each direction.
        temperatures: as many as a pilot run finds worth their cost if None, a number of them spread as the pilot
            run says, or the temperatures themselves, from 0 to 1.
        kernel: moves the particles; its step size is tuned by the pilot run.
        waypoints: potentials between base and target that the path goes through, such as a model's noise levels.
        refit: where there are no samples, take a base fitted to the particles of the pilot run in place of the one that
            it began at, if that shortens the path.
        starts: descents that search for modes where there is neither a base nor samples; 0 to begin at N(0, I).

    Raises:
        InvalidInput: for a number of particles that eight islands can't share, temperatures that don't rise from 0 to
            1, or a kernel that never rejects or can't be run backwards.

    Example:
        >>> isinstance(ep.normalizing.BAR(), ep.normalizing.Annealing), ep.normalizing.SMC(temperatures=20).temperatures
        (True, 20)
    """

    particles: int = 512
    temperatures: int | Sequence[float] | None = None
    kernel: Kernel = field(default_factory=lambda: MALA(1.0))
    waypoints: tuple[Potential, ...] = ()
    refit: bool = True
    starts: int = 128
    forward: ClassVar[bool] = True
    reverse: ClassVar[bool] = False
    islands: ClassVar[int | None] = None
    words: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("particles", self.particles, at_least=4 * ISLANDS)
        if self.particles % ISLANDS:
            raise InvalidInput(f"particles must be a multiple of {ISLANDS}; got {self.particles}")
        if isinstance(self.temperatures, Sequence):
            check_temperatures("temperatures", self.temperatures)
        elif self.temperatures is not None:
            check_count("temperatures", self.temperatures)
        check_count("starts", self.starts, at_least=0)
        check_kernel(self.kernel)
        if isinstance(self.kernel, Langevin):
            raise InvalidInput("Langevin never rejects, so its weights would be biased: anneal with MALA or HMC")
        if isinstance(self.kernel, Tempered) or (self.reverse and isinstance(self.kernel, (Cycle, Mixture))):
            raise InvalidInput(
                f"{type(self.kernel).__name__} can't be run backwards from one temperature to the next: use MALA or HMC"
            )


@dataclass(frozen=True, eq=False)
class AIS(Annealing):
    """Annealed importance sampling from the base (Neal 2001): Z without bias, a stochastic lower bound on log Z.

    >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))  # log Z = log 2π = 1.838
    >>> base = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
    >>> found = ep.log_normalizer(bell, base=base, method=ep.normalizing.AIS(particles=256))
    >>> abs(found.estimate - 1.838) < 0.1
    True
    """

    words = "annealed importance sampling"


@dataclass(frozen=True, eq=False)
class SMC(Annealing):
    """AIS whose particles are resampled in eight islands when their weights grow uneven (Del Moral et al. 2006).

    >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))  # log Z = log 2π = 1.838
    >>> base = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
    >>> found = ep.log_normalizer(bell, base=base, method=ep.normalizing.SMC(temperatures=50))
    >>> abs(found.estimate - 1.838) < 0.1
    True
    """

    islands = ISLANDS
    words = "sequential Monte Carlo"


@dataclass(frozen=True, eq=False)
class ReverseAIS(Annealing):
    """AIS from draws of the target: 1/Z without bias, a stochastic upper bound on log Z (Grosse et al. 2015).

    Its weights are heavy-tailed even where all is well; :class:`BAR` makes far more of the same runs.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))  # log Z = log 2π = 1.838
        >>> found = ep.log_normalizer(bell, samples=torch.randn(2000, 2), method=ep.normalizing.ReverseAIS())
        >>> abs(found.estimate - 1.838) < 0.1
        True
    """

    forward = False
    reverse = True
    words = "reverse annealed importance sampling"


@dataclass(frozen=True, eq=False)
class BAR(Annealing):
    """Forward and reverse AIS, bridged by Bennett's acceptance ratio (1976): bounds on both sides, the least error.

    >>> toy = ep.toys.Banana()  # which is normalized: log Z = 0
    >>> found = ep.log_normalizer(toy, samples=toy.sample((1000,)), method=ep.normalizing.BAR(particles=256))
    >>> abs(found.estimate) < 0.5
    True
    """

    reverse = True
    words = "bridge of forward and reverse annealing"
