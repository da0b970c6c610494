"""Markov kernels: one transition for a batch of chains."""
