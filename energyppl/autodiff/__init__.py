"""Energies and their gradients: one traced call, and checks of when a trace no longer serves."""

from energyppl.autodiff.gradient import energy_and_grad, energy_only, gradient_only

__all__ = ["energy_and_grad", "energy_only", "gradient_only"]
