"""Contexts of conditional models: their coordinates, an encoder, and which of them training has seen."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_context, check_data, check_shape, shape_text
from energyppl.autodiff.private import is_transformed
from energyppl.errors import InvalidInput
from energyppl.models._scaling import robust_scaling

__all__ = ["Contexts", "context_shapes"]

_KEPT, _NUMBERS = 1024, 2**17  # training contexts that are kept, and numbers of all of them together at most
_USUAL, _FACTOR = 0.99, 1.5  # of these contexts' distances to the next one; beyond that many times it, one is far
_NEAR = 0.25  # standard deviations of each coordinate: nothing nearer than that is far


class Contexts(nn.Module):
    """Contexts of a model: standardized, encoded, and compared with those that it was trained with.

    Numbers are standardized coordinate by coordinate; what goes through an encoder, such as images, shares one mean and
    one scale.

    Args:
        shape: of one context.
        encoder: maps standardized contexts ``(n, *shape)`` to features ``(n, *features)``; none if None.
        like: a tensor of the model's dtype and device.
    """

    loc: Tensor
    scale: Tensor
    kept: Tensor
    count: Tensor
    reach: Tensor

    def __init__(self, shape: torch.Size, encoder: nn.Module | None, like: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        rows = max(16, min(_KEPT, _NUMBERS // max(1, shape.numel())))
        self.register_buffer("loc", torch.zeros(shape).to(like))
        self.register_buffer("scale", torch.ones(shape).to(like))
        self.register_buffer("kept", torch.zeros(rows, shape.numel()).to(like))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device=like.device))
        self.register_buffer("reach", torch.zeros(()).to(like))

    def standardize(self, context: Tensor) -> None:
        """Set the coordinates to the training contexts ``(n, *shape)``, and keep some of them.

        Raises:
            InvalidInput: for a coordinate that is constant, unless there is an encoder.
        """
        rows = check_data("context", context, self.shape, at_least=2).to(self.loc).double()
        loc, scale = rows.mean(0), rows.std(0)
        constant = scale <= 2.0 * torch.finfo(self.loc.dtype).eps * rows.abs().amax(0)
        if self.encoder is not None:
            loc, scale = rows.mean().expand_as(loc), rows.std().expand_as(scale)
            constant = scale <= 0.0
        places = constant.flatten().nonzero()[:, 0].tolist()
        if places:
            raise InvalidInput(
                f"contexts must vary; coordinate(s) {places[:20]} are constant in all rows, so nothing can be learned "
                "of what they do: leave them out"
            )
        if self.encoder is None:
            loc, scale = robust_scaling(rows, loc, scale)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self._keep(self.to_unit(rows.to(self.loc)).flatten(1))

    def _keep(self, rows: Tensor) -> None:
        """Keep some contexts, the same each time, and how far each of them usually is from the next."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)
        some = rows[order[: len(self.kept)]]
        self.kept[: len(some)] = some
        self.count.fill_(len(some))
        apart = torch.cdist(some, some).fill_diagonal_(math.inf).amin(1)
        usual = float(apart.double().quantile(_USUAL)) if len(some) > 1 else 0.0
        self.reach.fill_(max(_FACTOR * usual, _NEAR * math.sqrt(rows.shape[1])))

    def to_unit(self, context: Tensor) -> Tensor:
        """Return contexts in standardized coordinates, on the model's device."""
        return (context.to(self.loc) - self.loc) / self.scale

    def features(self, context: Tensor) -> Tensor:
        """Return what the network is told of contexts ``(*batch, *shape)``: ``(*batch, *features)``."""
        unit = self.to_unit(context)
        if self.encoder is None:
            return unit
        batch = unit.shape[: unit.dim() - len(self.shape)]
        found: Tensor = self.encoder(unit.reshape(batch.numel(), *self.shape))
        return found.reshape(*batch, *found.shape[1:])

    @torch.no_grad()
    def far(self, context: Tensor) -> Tensor:
        """Tell which contexts ``(*batch, *shape)`` are nowhere near one of the training, ``(*batch,)``.

        Far is one whose distance from the nearest that was kept is more than 1.5 times what 99 % of these are from
        their own nearest, and more than a quarter of a standard deviation in each coordinate.
        """
        batch = context.shape[: context.dim() - len(self.shape)]
        count = int(self.count)
        if not count:
            return torch.zeros(batch, dtype=torch.bool, device=self.loc.device)
        rows = self.to_unit(context.detach()).reshape(batch.numel(), -1)
        nearest = torch.cat([torch.cdist(part, self.kept[:count]).amin(1) for part in rows.split(4096)])
        return (nearest > self.reach).reshape(batch)

    def check(self, context: object) -> Tensor:
        """Require contexts ``(*batch, *shape)``, floating point and finite, one or more.

        Raises:
            InvalidInput: for anything else.
        """
        context = check_context(context, self.shape)
        if not context.numel():
            raise InvalidInput(f"context must hold one or more; got a batch of none, {shape_text(context.shape)}")
        kept = context.dim() - len(self.shape)
        if is_transformed():  # values can't be read there
            return context
        bad = ~torch.isfinite(context).reshape(*context.shape[:kept], -1).all(-1)
        if bool(bad.any()):
            raise InvalidInput(
                f"context must be finite; got NaN or infinity in {int(bad.sum())} of {bad.numel()} contexts: drop or "
                "impute those"
            )
        return context


def context_shapes(
    net: nn.Module, context_shape: int | Sequence[int] | None, encoder: nn.Module | None, like: Tensor
) -> tuple[torch.Size, torch.Size]:
    """Return the shape of one context, and of what the network is told of it.

    Raises:
        InvalidInput: if neither the network nor the caller names one, or the encoder returns another.
    """
    own = getattr(net, "context_shape", None)
    if encoder is None:
        chosen = own if context_shape is None else context_shape
        if chosen is None:
            raise InvalidInput(
                f"the network {type(net).__name__} names no context_shape: build MLPEnergy(event_shape, "
                "context_shape=…), or pass context_shape=(…), the shape of one context"
            )
        shape = check_shape("context_shape", chosen, at_least=1)
        if own is not None and torch.Size(own) != shape:
            raise InvalidInput(
                f"context_shape must be the network's own, {shape_text(own)}; got {shape_text(shape)}: leave it out, "
                "or pass an encoder that maps one to the other"
            )
        return shape, shape
    if not isinstance(encoder, nn.Module):
        raise InvalidInput(f"encoder must be a torch module; got {type(encoder).__name__}: pass a network")
    if context_shape is None:
        raise InvalidInput("an encoder needs context_shape=(…), the shape of one context that goes into it")
    shape = check_shape("context_shape", context_shape, at_least=1)
    features = _encoded(encoder, torch.zeros(2, *shape).to(like))
    if own is not None and torch.Size(own) != features:
        raise InvalidInput(
            f"the encoder must return features of the network's context_shape {shape_text(own)}; got "
            f"{shape_text(features)} for contexts {shape_text(shape)}"
        )
    return shape, features


def _encoded(encoder: nn.Module, contexts: Tensor) -> torch.Size:
    """Return the shape of one context's features."""
    try:
        with torch.no_grad():
            found = encoder(contexts)
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise InvalidInput(
            f"the encoder must take contexts {shape_text(contexts.shape)}; it raised: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.dim() < 1 or len(found) != len(contexts):
        came = shape_text(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInput(f"the encoder must return (2, *features) for 2 contexts; got {came}")
    return found.shape[1:]
