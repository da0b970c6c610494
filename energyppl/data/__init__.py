"""Loaders of tables and images."""
