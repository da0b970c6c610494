"""Integrals of exp(−U) without chains, and the values in which estimates of log Z are returned."""

from energyppl.integration.enumeration import enumerated
from energyppl.integration.estimates import Estimate, LogNormalizer
from energyppl.integration.pareto import pareto_k
from energyppl.integration.quadrature import Grid, GridOptions, Quadrature, expectation, kl_divergence, quadrature

__all__ = [
    "Estimate",
    "Grid",
    "GridOptions",
    "LogNormalizer",
    "Quadrature",
    "enumerated",
    "expectation",
    "kl_divergence",
    "pareto_k",
    "quadrature",
]
