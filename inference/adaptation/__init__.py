"""Adaptation: what a warm-up learns."""

from energyppl.inference.adaptation.warmup import Adaptation, adapt, warm_up

__all__ = ["Adaptation", "adapt", "warm_up"]
