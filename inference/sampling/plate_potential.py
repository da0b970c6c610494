"""Pyro models with one plate of independent rows: the posterior energy of each row's latent values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints

from energyppl._checks import shape_text
from energyppl.autodiff.structure import modules_read_by
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.sampling.pyro_model import unvalidated
from energyppl.inference.sampling.pyro_sites import cover, mask_of

__all__ = ["Frame", "PlatePotential", "RowSite"]


@dataclass(frozen=True)
class Frame:
    """The plate of the rows."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class RowSite:
    """A latent site of each row."""

    name: str
    shape: torch.Size  # of one row


@dataclass(frozen=True, eq=False)
class PlatePotential:
    """The energies −log p(z_i, x_i) of the rows of a Pyro model's plate, up to the log Z of energies in it.

    Points are ``(*batch, n, D)``, each row's latent sites laid end to end, and energies ``(*batch, n)``: rows are
    independent, so that each is accepted or rejected by itself.
    """

    model: Callable[..., Any] = field(metadata={"pure": True}, repr=False)
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    sites: tuple[RowSite, ...] = field(metadata={"pure": True})
    frame: Frame = field(metadata={"pure": True})
    event_shape: torch.Size
    modules: tuple[nn.Module, ...] = field(repr=False)

    @classmethod
    def trace(
        cls, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "tuple[PlatePotential, dict[str, Tensor]]":
        """Run a model once and lay out its latent sites; return the values that it drew for them, too.

        Raises:
            InvalidInput: for a model without latent sites, or with some outside of one plate, in several, in a plate
                that subsamples, masked, or not real; for observed sites that are not one value for each row.
        """
        frame, drawn = _latent_sites(model, args, kwargs)
        sites = tuple(RowSite(name, value.shape[1:]) for name, value in drawn.items())
        size = sum(site.shape.numel() for site in sites)
        modules = (model,) if isinstance(model, nn.Module) else tuple(modules_read_by(model))
        found = cls(model, tuple(args), tuple(kwargs.items()), sites, frame, torch.Size((size,)), modules)
        return found, drawn

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Take points ``(*batch, n, D)`` apart into the latent sites' values, ``(*batch, n, *shape)`` by name."""
        parts = z.split([site.shape.numel() for site in self.sites], -1)
        return {
            site.name: part.reshape(*z.shape[:-1], *site.shape) for site, part in zip(self.sites, parts, strict=True)
        }

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """Lay out the latent sites' values, ``(n, *shape)`` by name, as points ``(n, D)``.

        Raises:
            InvalidInput: if a site is missing or has another shape.
        """
        parts = []
        for site in self.sites:
            expected = (self.frame.size, *site.shape)
            came = values.get(site.name)
            if came is None or tuple(came.shape) != expected:
                got = "nothing" if came is None else shape_text(came.shape)
                raise InvalidInput(f"the guide must give site {site.name!r} values {shape_text(expected)}; got {got}")
            parts.append(came.reshape(self.frame.size, -1))
        return torch.cat(parts, -1)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of points, ``(*batch, n, D)`` to ``(*batch, n)``, in nats."""
        batch = x.shape[:-1]
        with poutine.block(), unvalidated(), _Unnormalized():  # by itself, whatever handlers are around
            trace = poutine.trace(poutine.condition(self.model, self.split(x))).get_trace(
                *self.args, **dict(self.kwargs)
            )
            trace.compute_log_prob()
        total = x.new_zeros(batch)
        for node in trace.nodes.values():
            if node["type"] == "sample" and not site_is_subsample(node):
                # A minibatch's scale belongs to the loss, and not to a row's posterior; a mask belongs to both.
                mask = True if node["mask"] is None else node["mask"]
                kept = torch.as_tensor(mask, device=x.device)
                total = total - torch.where(kept, node["unscaled_log_prob"], 0.0)
        return total


class _Unnormalized(Messenger):
    """Takes the log Z off energies: a constant in latent values, which may take long to work out.

    Masked data may be NaN, whose gradient would be NaN although the density does not count them.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not site_is_subsample(msg):
            cover(msg)
        if isinstance(msg["fn"], EnergyDistribution):
            msg["fn"] = msg["fn"].unnormalized()


def _latent_sites(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Frame, dict[str, Tensor]]:
    """Find the plate of a model's rows, and draw its latent sites, ``(n, *shape)`` by name.

    Raises:
        InvalidInput: as :meth:`PlatePotential.trace`.
    """
    with poutine.block(), torch.no_grad(), _Unnormalized():
        nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
    drawn: dict[str, Tensor] = {}
    frames = set()
    for name, node in nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
            continue
        frames.add(_frame_of(name, node))
        drawn[name] = torch.as_tensor(node["value"]).detach()
    if not drawn or len(frames) > 1:
        raise InvalidInput(
            f"the model must have latent sites in one plate of rows; got {len(drawn)} sites in {len(frames)} plates"
        )
    frame = frames.pop()
    for name, node in nodes.items():
        if node["type"] == "sample" and node["is_observed"] and not site_is_subsample(node):
            _require_rows(name, node, frame)
    return frame, drawn


def _frame_of(name: str, node: Any) -> Frame:
    """Return the plate that a latent site lies in.

    Raises:
        InvalidInput: as :meth:`PlatePotential.trace`, for this site.
    """
    stack, fn = node["cond_indep_stack"], node["fn"]
    if len(stack) != 1 or len(fn.batch_shape) != 1:
        raise InvalidInput(
            f"latent site {name!r} must lie in one plate of independent rows; got plates "
            f"{', '.join(frame.name for frame in stack) or 'none'}: sample such a model by sample_chains"
        )
    mask = mask_of(node)
    if mask is not None and not bool(mask.all()):
        raise InvalidInput(
            f"latent site {name!r} is masked, so that its rows there have no prior and no marginal likelihood: "
            "mask the data alone, by pyro.sample(name, distribution.mask(seen), obs=…) in place of obs_mask"
        )
    if getattr(stack[0], "full_size", stack[0].size) not in (None, stack[0].size):
        raise InvalidInput(
            f"plate {stack[0].name!r} subsamples its rows: pass a batch to a plate of its own length, and scale "
            "the loss by poutine.scale"
        )
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real:
        raise InvalidInput(f"latent site {name!r} must be real; got the support {fn.support}: transform a real one")
    return Frame(stack[0].name, stack[0].size, stack[0].dim)


def _require_rows(name: str, node: Any, frame: Frame) -> None:
    """Require an observed site to have one log density for each row.

    Raises:
        InvalidInput: for one outside of the plate of rows, or in another one too.
    """
    plates, batch = [own.name for own in node["cond_indep_stack"]], tuple(node["fn"].batch_shape)
    if plates != [frame.name] or batch not in ((frame.size,), (1,)):
        raise InvalidInput(
            f"observed site {name!r} must lie in the plate {frame.name!r} alone, a value for each row; got plates "
            f"{', '.join(plates) or 'none'} and batch {shape_text(batch)}: make what a row consists of an event by "
            ".to_event(1), and leave out what belongs to no row"
        )
