"""Noise levels allotted to the rows of a batch."""

import torch
from torch import Tensor

__all__ = ["allocate_levels", "draw_upper_levels", "stratified_levels"]


def allocate_levels(count: int, levels: int, level0_fraction: float = 0.25) -> Tensor:
    """Allot a level to each of ``count`` rows, in random order: equal shares, and ``level0_fraction`` more for level 0.

    Exact shares leave less noise in the gradient than independent draws; the random offset lets every level have its
    turn when there are fewer rows than levels.
    """
    first = int(level0_fraction * count)
    rest = (torch.arange(count - first) + torch.randint(levels, ())) % levels
    return torch.cat([torch.zeros(first, dtype=torch.long), rest])[torch.randperm(count)]


def draw_upper_levels(level: Tensor, levels: int, skip_fraction: float) -> Tensor:
    """Draw the noisier marginal that each row is recovered from: the next one, or for a share of rows any above."""
    above = levels - level
    jump = 1 + (torch.rand(level.shape, device=level.device) * above).long()
    return level + torch.where(torch.rand(level.shape, device=level.device) < skip_fraction, jump, 1)


def stratified_levels(rows: int, levels: int, offset: float) -> Tensor:
    """Return the level of each of ``rows`` rows, ``(rows,)``: row i gets level ⌊(i + offset) levels / rows⌋.

    One row for each level gets row i level i, the paper's stratified levels; k of them get each level exactly k rows;
    fewer rows than levels are spread evenly over them, and an offset drawn from [0, 1) gives every level its turn.
    """
    exact = (torch.arange(rows, dtype=torch.float64) + offset) * levels / rows
    return exact.long().clamp(max=levels - 1)
