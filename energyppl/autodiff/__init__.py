"""Energies and their gradients: one traced call, and what tells when a trace no longer serves."""
