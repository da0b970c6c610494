"""Adaptation: what a warm-up learns."""
