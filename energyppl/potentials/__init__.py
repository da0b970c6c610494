"""Energies: their algebra, networks at a noise level, constrained supports, normalized bases."""
