"""Adaptation: what a warm-up learns."""

from energyppl.inference.adaptation.warmup import Adaptation, adapt, untuned, warm_up

__all__ = ["Adaptation", "adapt", "untuned", "warm_up"]
