"""Inference, in sub-packages: kernels, adaptation, sampling, levels, objectives, training, normalizing, evaluation."""

if __name__ != "energyppl.inference":
    raise ImportError("import energyppl.inference: this folder is its source, not a package of its own")

from energyppl.inference import adaptation, evaluation, kernels, levels, normalizing, objectives, sampling, training

__all__ = ["adaptation", "evaluation", "kernels", "levels", "normalizing", "objectives", "sampling", "training"]
