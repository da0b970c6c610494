"""The methods for log Z, in one table."""

import energyppl as ep

__all__ = []

# A new method is one line, of 256 particles.
METHODS: list[ep.normalizing.Annealing] = [
    ep.normalizing.AIS(256),
    ep.normalizing.SMC(256),
    ep.normalizing.ReverseAIS(256),
    ep.normalizing.BAR(256, kernel=ep.HMC(0.1, 3)),
]
