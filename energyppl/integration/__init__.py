"""Integrals of exp(−U) without chains, and the values that estimates of log Z are."""
