"""A time-conditioned multilayer perceptron that returns an energy."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_positive
from energyppl.errors import InvalidInput
from energyppl.models.networks.conditioning import class_rows
from energyppl.models.networks.fourier import feature_layers, random_frequencies, through_layers
from energyppl.models.networks.recipe import Rebuildable

__all__ = ["MLPEnergy"]


class MLPEnergy(Rebuildable, nn.Module):
    """``U(x, t) = f(x, t) + ½ confinement |x|²`` with f a perceptron on Fourier features, FiLM-conditioned.

    It expects points of about unit variance, which :class:`~energyppl.RecoveryEBM` hands it at every level.  f grows at
    most linearly, so the quadratic term makes every level's energy normalizable, and at high noise, where the data are
    nearly N(0, I), it is already the answer.  The conditioning is a table with one row for each level: while chains
    run at given levels it is worked out once and not once a step.

    Args:
        event_shape: shape of one point; any number of dimensions, flattened inside.
        hidden: width of each hidden layer.
        depth: number of hidden layers.
        frequencies: how many random Fourier features of the input (Tancik et al. 2020), 0 for none; a sharp density
            needs them.
        frequency_range: lowest and highest angular frequency of the features, spread evenly on a log scale; 1 to 16 in
            one and two dimensions, where edges can be learned, 0.3 to 3 above, where they would be learned by heart.
        levels: rows of the conditioning table; at least the schedule's levels.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.
        confinement: strength of the quadratic term, above 0.
        saturation_radius: distance, in √dimensions, from which f bends towards a constant along every ray, so that it
            digs no holes             where no data lie; infinite in one and two dimensions, 2 above, if None.

    Raises:
        InvalidInput: for sizes below one, frequencies that don't increase, or a ``confinement`` or
            ``saturation_radius`` that is not             positive.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        hidden: int = 128,
        depth: int = 3,
        frequencies: int = 64,
        frequency_range: tuple[float, float] | None = None,
        levels: int = 64,
        classes: int = 0,
        confinement: float = 1.0,
        saturation_radius: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("hidden", hidden), ("depth", depth), ("levels", levels)):
            check_count(name, value)
        check_count("frequencies", frequencies, at_least=0)
        check_count("classes", classes, at_least=0)
        plane = math.prod(event_shape) <= 2
        if saturation_radius is None:
            saturation_radius = math.inf if plane else 2.0
        check_positive("confinement", confinement)
        if not saturation_radius > 0:
            raise InvalidInput(f"saturation_radius must be positive; got {saturation_radius}")
        if frequency_range is None:
            frequency_range = (1.0, 16.0) if plane else (0.3, 3.0)
        self.event_shape = torch.Size(event_shape)
        self.levels = levels
        self.classes = classes
        self.confinement = confinement
        self.saturation_radius = saturation_radius
        size = math.prod(self.event_shape)
        self.register_buffer("frequencies", random_frequencies(size, frequencies, frequency_range))
        self.layers = feature_layers(size, frequencies, hidden, depth)
        # A row for each level: (scale, shift) of every layer's hidden units; zero leaves the layers as they are.
        self.film = nn.Parameter(torch.zeros(levels, depth * 2 * hidden))
        self.class_film = nn.Parameter(torch.zeros(classes + 1, depth * 2 * hidden)) if classes else None
        self.readout = nn.Linear(hidden, 1)

    frequencies: Tensor

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Energies in nats.

        Args:
            x: points, ``(*batch, *event)``.
            level: whole levels, ``()`` or ``(*batch,)``.
            label: classes, likewise; ``classes`` or None for no class.

        Returns:
            Energies, ``(*batch,)``.

        Raises:
            InvalidInput: for a label that is out of range, or where there are no classes.
        """
        x = x.flatten(x.dim() - len(self.event_shape)) if self.event_shape else x.unsqueeze(-1)
        square = (x * x).sum(-1)
        if self.saturation_radius < math.inf:
            x = x * torch.rsqrt(1.0 + square / (self.saturation_radius**2 * x.shape[-1])).unsqueeze(-1)
        # Splitting once costs one concatenation on the way back, where indexing would fill a table for each piece.
        table = nn.functional.embedding(level, self.film)
        of_class = class_rows(self.class_film, label, x.shape[:-1])
        film = (table if of_class is None else table + of_class).chunk(2 * len(self.layers), -1)
        hidden = through_layers(x, self.frequencies, self.layers, zip(film[0::2], film[1::2], strict=True))
        energy: Tensor = self.readout(hidden).squeeze(-1)
        return energy + 0.5 * self.confinement * square
