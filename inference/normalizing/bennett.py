"""Bennett's acceptance ratio: one estimate out of forward and reverse log weights, better than either."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from energyppl._checks import check_event, checked, shape_text
from energyppl.errors import EnergyPPLError, InvalidInput

__all__ = ["bennett"]


@checked
def bennett(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Estimate log(Z_target / Z_base) by Bennett's acceptance ratio (1976), with Shirts & Chodera's error (2008).

    Args:
        forward: log weights of runs from the base, ``(n,)``.
        reverse: log weights of runs from the target, ``(m,)``.

    Returns:
        The estimate and its standard error, in nats; the error is infinite where fewer than one of all particles is
        expected where both ends overlap, since then nothing tells how far the estimate is off.

    Raises:
        EnergyPPLError: if no forward or no reverse weight is finite.

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
    forward, reverse = forward.double(), reverse.double()
    if not all(bool(torch.isfinite(weights).any()) for weights in (forward, reverse)):
        raise EnergyPPLError(
            "all forward or all reverse log weights are infinite: base and target don't overlap; pass a base that is "
            "closer to the target"
        )
    shift = math.log(len(forward) / len(reverse))

    def balance(guess: float) -> float:
        ahead = logsigmoid(forward - guess - shift).logsumexp(0)
        return float(ahead - logsigmoid(reverse + guess + shift).logsumexp(0))

    finite = torch.cat([forward, -reverse])
    finite = finite[torch.isfinite(finite)]
    low, high = float(finite.min()) - abs(shift) - 1.0, float(finite.max()) + abs(shift) + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if balance(middle) > 0 else (low, middle)
    estimate = 0.5 * (low + high)
    terms = (logsigmoid(forward - estimate - shift), logsigmoid(reverse + estimate + shift))
    if float(terms[0].logsumexp(0)) < 0.0:  # of all particles less than one is expected where the two ends overlap
        return estimate, math.inf
    variance = sum(float(torch.exp((2.0 * f).logsumexp(0) - 2.0 * f.logsumexp(0))) - 1.0 / len(f) for f in terms)
    return estimate, math.sqrt(max(0.0, variance))
