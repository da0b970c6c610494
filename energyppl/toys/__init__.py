"""Toy densities whose normalizing constant and entropy are known.

Every toy is a frozen value with ``sample``, ``log_prob`` (nats, normalized), ``entropy`` (nats), ``modes``,
``on_support`` and ``diffused(alpha, sigma)``, the exact density of ``alpha * x0 + sigma * noise``.  Called as a
function it is its own energy ``-log_prob(x)``, so a toy is a potential.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from energyppl.toys.base import Diffused, NoisyToy, Toy
from energyppl.toys.curves import EightGaussians, OneDimensionalMixture, Spirals, SwissRoll, TwoMoons
from energyppl.toys.mixtures import GaussianMixture, IsotropicMixture
from energyppl.toys.shapes import Checkerboard, Pinwheel, Rings
from energyppl.toys.smooth import Banana, DoubleWell, Funnel

__all__ = [
    "TWO_DIMENSIONAL",
    "Banana",
    "Checkerboard",
    "Diffused",
    "DoubleWell",
    "EightGaussians",
    "Funnel",
    "GaussianMixture",
    "IsotropicMixture",
    "NoisyToy",
    "OneDimensionalMixture",
    "Pinwheel",
    "Rings",
    "Spirals",
    "SwissRoll",
    "Toy",
    "TwoMoons",
]

TWO_DIMENSIONAL: Mapping[str, Callable[[], Toy]] = MappingProxyType(
    {
        "banana": Banana,
        "checkerboard": Checkerboard,
        "eight-gaussians": EightGaussians,
        "funnel": Funnel,
        "pinwheel": Pinwheel,
        "rings": Rings,
        "spirals": Spirals,
        "swiss-roll": SwissRoll,
        "two-moons": TwoMoons,
    }
)
"""The toys in the plane by the names that the command line takes: ``ep.toys.TWO_DIMENSIONAL["rings"]()`` is one."""
