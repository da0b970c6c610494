"""The coordinates of a model: points that are standardised once, to the data it is trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_data
from energyppl.errors import InvalidInput


class Standardized(nn.Module):
    """A model whose network sees points of about zero mean and unit variance, ``(x − loc) / scale``."""

    loc: Tensor
    scale: Tensor
    is_standardized: Tensor
    event_shape: torch.Size

    def __init__(self, event_shape: Sequence[int], net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.event_shape = torch.Size(event_shape)
        like = next((p for p in net.parameters() if p.dtype.is_floating_point), torch.empty(()))
        self.register_buffer("loc", torch.zeros(self.event_shape, dtype=like.dtype, device=like.device))
        self.register_buffer("scale", torch.ones_like(self.loc))
        self.register_buffer("is_standardized", torch.zeros((), dtype=torch.bool, device=like.device))

    def standardize(self, data: Tensor, *, isotropic: bool = False) -> None:
        """Set ``loc`` and ``scale`` to the mean and standard deviation of each coordinate of ``data``, ``(n, *event)``.

        ``fit`` does so once, unless you have; with ``isotropic`` all coordinates share one scale, so that some may be
        constant, as the edges of images are: level 0 has noise of its own.

        Raises:
            InvalidInput: if a coordinate is constant, which no density can describe (with ``isotropic``: all of them).
        """
        check_data("data", data, self.event_shape, at_least=2)
        data = data.to(self.loc)
        scale = data.std(0)
        constant = (scale <= 1e-6 * (1.0 + data.abs().amax(0))).flatten().nonzero()[:, 0].tolist()
        if len(constant) > (scale.numel() - 1 if isotropic else 0):
            raise InvalidInput(
                f"data must vary in every coordinate; coordinate(s) {constant[:20]} are constant: drop them, or give "
                "all one scale by ebm.standardize(data, isotropic=True)"
            )
        self.loc.copy_(data.mean(0))
        self.scale.copy_(scale.square().mean().sqrt() if isotropic else scale)
        self.is_standardized.fill_(True)

    def standardized(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which noise is counted, ``(x − loc) / scale``."""
        return (data - self.loc) / self.scale
