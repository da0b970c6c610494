"""Perceptron that initializes recovery chains: q(y | x_{t+1}) of CDRL (Zhu et al. 2024)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_shape, checked
from energyppl.models.networks.conditioning import ConditionTable, batch_shape
from energyppl.models.networks.fourier import feature_layers, random_frequencies, through_layers
from energyppl.models.networks.recipe import Rebuildable

__all__ = ["MLPInitializer"]


class MLPInitializer(Rebuildable, nn.Module):
    """``(shift, log_scale)`` of a Gaussian q(y | x_{t+1}), relative to a reference that the caller adds.

    CDRL's initializer (Zhu et al. 2024) for points that are not images.  Both are zero at first: q then is the
    reference, such as the recovery distribution of Gaussian data.  Points come in, and shifts go out, in units in which
    the points have about unit variance.

    Args:
        event_shape: shape of one point; any number of dimensions, flattened inside.
        hidden: width of each hidden layer.
        depth: number of hidden layers.
        frequencies: how many random Fourier features of the input (Tancik et al. 2020), 0 for none.
        frequency_range: lowest and highest angular frequency of the features, spread evenly on a log scale; 1 to 8 in
            one and two dimensions, 0.3 to 3 above.  The mean it learns is smooth over the width of the tilt, so they
            are lower than those of an energy.
        levels: rows of the conditioning table; at least the schedule's levels.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.
        learn_scale: learn a log scale for each coordinate, between −6 and 2; else it is 0.

    Raises:
        InvalidInput: for sizes below one, or frequencies that don't increase.

    Example:
        >>> net = ep.MLPInitializer((2,), levels=3)
        >>> shift, log_scale = net(torch.randn(5, 2), torch.tensor(1))
        >>> shift.shape, float(shift.detach().abs().max())
        (torch.Size([5, 2]), 0.0)
    """

    frequencies: Tensor

    @checked
    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        hidden: int = 128,
        depth: int = 2,
        frequencies: int = 32,
        frequency_range: tuple[float, float] | None = None,
        levels: int = 64,
        classes: int = 0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("hidden", hidden), ("depth", depth), ("levels", levels)):
            check_count(name, value)
        check_count("frequencies", frequencies, at_least=0)
        check_count("classes", classes, at_least=0)
        self.event_shape = check_shape("event_shape", event_shape, at_least=1)
        size = math.prod(self.event_shape)
        if frequency_range is None:
            frequency_range = (1.0, 8.0) if size <= 2 else (0.3, 3.0)
        self.levels = levels
        self.classes = classes
        self.learn_scale = learn_scale
        self.register_buffer("frequencies", random_frequencies(size, frequencies, frequency_range))
        self.layers = feature_layers(size, frequencies, hidden, depth)
        self.conditioning = ConditionTable([2 * hidden] * depth, levels=levels, classes=classes)
        self.readout = nn.Linear(hidden, 2 * size if learn_scale else size)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return shift and log scale of the starts, given the noisy points.

        Args:
            x: noisy points x_{t+1} of about unit variance, ``(*batch, *event)``.
            level: whole levels t, ``()`` or broadcastable to ``(*batch,)``.
            label: classes, likewise; ``classes`` or None for no class.

        Returns:
            The shift, ``(*batch, *event)``, and the log scale: of that shape, or a zero ``()`` if not learned.

        Raises:
            InvalidInput: for points of another shape, or a label that is out of range or where there are no classes.
        """
        batch = batch_shape(x, self.event_shape)
        points = x.reshape(math.prod(batch), math.prod(self.event_shape))
        pieces = (piece.chunk(2, -1) for piece in self.conditioning(level, label, batch))
        modulation = ((1.0 + scale, shift) for scale, shift in pieces)
        read = self.readout(through_layers(points, self.frequencies, self.layers, modulation))
        if not self.learn_scale:
            return read.reshape(x.shape), x.new_zeros(())
        shift, raw = read.chunk(2, -1)
        return shift.reshape(x.shape), soft_log_scale(raw).reshape(x.shape)


def soft_log_scale(raw: Tensor) -> Tensor:
    """Squash a log scale into −6 to 2: 0 at 0, with slope 1 there."""
    # −2 + 4 tanh(raw / 3 + artanh ½), rewritten so that zero maps to exactly zero.
    bend = torch.tanh(raw / 3.0)
    return 3.0 * bend / (1.0 + 0.5 * bend)
