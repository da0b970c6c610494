"""Noise levels allotted to the rows of a batch."""

import torch
from torch import Tensor

__all__ = ["share_ladder", "share_levels", "share_reaches"]


def share_levels(count: int, levels: int, extra: float = 0.25) -> Tensor:
    """A level for each of ``count`` rows, in random order: equal shares, and ``extra`` more for level 0.

    Exact shares leave less noise in the gradient than independent draws; the random offset lets every level have its
    turn when there are fewer rows than levels.
    """
    first = int(extra * count)
    rest = (torch.arange(count - first) + torch.randint(levels, ())) % levels
    return torch.cat([torch.zeros(first, dtype=torch.long), rest])[torch.randperm(count)]


def share_reaches(level: Tensor, levels: int, reach: float) -> Tensor:
    """For each row the noisier marginal it is recovered from: the next one, or for a share of rows any above."""
    above = levels - level
    jump = 1 + (torch.rand(level.shape, device=level.device) * above).long()
    return level + torch.where(torch.rand(level.shape, device=level.device) < reach, jump, 1)


def share_ladder(rows: int, levels: int, offset: float) -> Tensor:
    """The level of each of ``rows`` rows, ``(rows,)``: row i gets level ⌊(i + offset) levels / rows⌋.

    One row for each level gets row i level i, the paper's stratified ladder; k of them get each level exactly k rows;
    fewer rows than levels are spread evenly over them, and an offset drawn from [0, 1) gives every level its turn.
    """
    exact = (torch.arange(rows, dtype=torch.float64) + offset) * levels / rows
    return exact.long().clamp(max=levels - 1)
