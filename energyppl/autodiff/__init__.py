"""Energies and their gradients: traced programs of bound potentials, and eager autograd where none serves."""

from energyppl.autodiff.bound import BoundPotential, bind, unbound
from energyppl.autodiff.gradient import energy_and_grad, energy_only, gradient_only

__all__ = ["BoundPotential", "bind", "energy_and_grad", "energy_only", "gradient_only", "unbound"]
