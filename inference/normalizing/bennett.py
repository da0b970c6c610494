"""Bennett's acceptance ratio: one estimate out of forward and reverse log weights, better than either."""

import math

import torch
from torch import Tensor

from energyppl._checks import check_event, checked, shape_text
from energyppl.errors import EnergyPPLError, InvalidInput

__all__ = ["bennett"]


@checked
def bennett(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Estimate log(Z_target / Z_base) by Bennett's acceptance ratio (1976), with Shirts & Chodera's error (2008).

    Args:
        forward: log weights of runs from the base, ``(n,)``.
        reverse: log weights of runs from the target, ``(m,)``.

    Raises:
        EnergyPPLError: if no weight is finite.

    Example:
        >>> forward, reverse = 1.0 + torch.randn(2_000), -2.0 + torch.randn(2_000)  # Gaussian work, variance 1
        >>> estimate, error = ep.normalizing.bennett(forward, reverse)
        >>> abs(estimate - 1.5) < 0.2, 0.0 < error < 0.1
        (True, True)
    """
    for name, weights in (("forward", forward), ("reverse", reverse)):
        check_event(name, weights, ())
        if weights.dim() != 1 or not len(weights):
            raise InvalidInput(f"{name} must be log weights (n,), one at least; got {shape_text(weights.shape)}")
    shift = math.log(len(forward) / len(reverse))

    def balance(guess: float) -> float:
        ahead = torch.sigmoid(forward - guess - shift).sum()
        back = torch.sigmoid(reverse + guess + shift).sum()
        return float(ahead - back)

    finite = torch.cat([forward, -reverse])
    finite = finite[torch.isfinite(finite)]
    if len(finite) == 0:
        raise EnergyPPLError("no particle came through from either end: base and target don't overlap")
    low, high = float(finite.min()) - abs(shift) - 1.0, float(finite.max()) + abs(shift) + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if balance(middle) > 0 else (low, middle)
    estimate = 0.5 * (low + high)
    terms = (torch.sigmoid(forward - estimate - shift), torch.sigmoid(reverse + estimate + shift))
    variance = sum(float((f * f).mean() / f.mean() ** 2 - 1.0) / len(f) for f in terms)
    return estimate, math.sqrt(max(0.0, variance))
