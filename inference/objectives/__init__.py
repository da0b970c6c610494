"""Training objectives: a batch in, a loss out."""
