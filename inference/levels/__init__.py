"""Chains at and between noise levels."""
