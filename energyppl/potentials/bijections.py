"""Maps from unconstrained numbers that torch has not, or not to all digits: onto angles and simplexes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints, transforms
from torch.nn import functional

__all__ = ["Direction", "LogStickBreaking"]


class Direction(transforms.Transform):
    """The angle of a point of the plane, in [−π, π], for a point whose distance from the origin is Rayleigh's.

    The distance is independent of the angle and its density e^(−r²/2) r is normalized, so neither the density of an
    angle nor its normalizer is changed by it.
    """

    domain = constraints.real_vector
    codomain = constraints.interval(-math.pi, math.pi)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction)

    __hash__ = None  # type: ignore[assignment]  # as torch's own transforms

    def _call(self, x: Tensor) -> Tensor:
        return torch.atan2(x[..., 1], x[..., 0])

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.stack([y.cos(), y.sin()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log (e^(−r²/2) r) less log r, that of the volume's element ``dx = r dr dy``; ``(*batch,)``."""
        return -0.5 * (x * x).sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of angles of points of a shape."""
        return torch.Size(shape[:-1])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of points of angles of a shape."""
        return torch.Size((*shape, 2))


class LogStickBreaking(transforms.StickBreakingTransform):
    """Stick-breaking in log space.

    Torch's own clamps each share of the stick at 1 − eps.  In float32 every coordinate then stops at 1e-7, where a
    Dirichlet of small concentration has much of its mass.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogStickBreaking)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        log_share, log_left = self._log_shares(x)
        log_y = functional.pad(log_share, (0, 1)) + functional.pad(log_left.cumsum(-1), (1, 0))
        return log_y.exp().clamp_min(torch.finfo(x.dtype).tiny)  # a density may be infinite at zero

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # summed from the end, so that no digits cancel
        return y[..., :-1].log() - left.log() + self._log_offset(left)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det ∂y/∂x|, ``(*batch,)``."""
        log_share, log_left = self._log_shares(x)
        return (log_share + log_left.cumsum(-1)).sum(-1)

    def _log_shares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logs of the share of the rest of the stick that each coordinate takes, and of what it leaves."""
        logits = x - self._log_offset(x)
        return functional.logsigmoid(logits), functional.logsigmoid(-logits)

    @staticmethod
    def _log_offset(x: Tensor) -> Tensor:
        """Return offsets that map z = 0 to the centre of the simplex."""
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()
