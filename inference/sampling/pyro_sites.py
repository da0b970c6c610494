"""Sites of a Pyro model: where latent values lie in a vector, which entries masks take out, and what each site is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions.transforms import IndependentTransform, Transform

from energyppl._checks import append_dims, broadcast_shapes, shape_text
from energyppl.errors import InvalidInput
from energyppl.potentials.constrained import latent_transform

__all__ = [
    "Fill",
    "Groups",
    "RedrawData",
    "Site",
    "cover",
    "groups_of",
    "is_random",
    "mask_of",
    "origin",
    "refuse_discrete",
]


@dataclass(frozen=True, eq=False)
class Site:
    """A latent site: where its unconstrained values lie in the vector of all.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        >>> site = ep.sampling.ModelPotential.trace(model).sites[0]
        >>> site.shape, site.constrained_shape  # a simplex of three shares has two free numbers
        (torch.Size([2]), torch.Size([3]))
    """

    name: str
    start: int
    shape: torch.Size  # unconstrained
    constrained_shape: torch.Size
    idle: Tensor | None = None  # of that shape, bool: entries that a mask takes out of the density, which stay at zero

    @property
    def size(self) -> int:
        """Number of coordinates of the site."""
        return self.shape.numel() if self.idle is None else int((~self.idle).sum())

    def take(self, z: Tensor) -> Tensor:
        """Take the site's unconstrained values ``(*batch, *shape)`` from the vectors of all, ``(*batch, D)``."""
        flat = z[..., self.start : self.start + self.size]
        if self.idle is not None:
            live = ~self.idle.flatten()
            place = torch.where(live, live.cumsum(0) - 1, self.size).to(
                z.device
            )  # a zero after the others serves idle ones
            flat = torch.cat([flat, flat.new_zeros((*flat.shape[:-1], 1))], -1).index_select(-1, place)
        return flat.reshape(z.shape[:-1] + self.shape)

    def put(self, values: Tensor, batch: torch.Size) -> Tensor:
        """Lay out unconstrained values ``(*batch, *shape)`` as the site's part ``(*batch, size)`` of the vectors."""
        flat = values.reshape(*batch, self.shape.numel())
        return flat if self.idle is None else flat[..., ~self.idle.flatten()]


class Fill(Messenger):
    """Gives latent sites values, made from unconstrained ones by each site's own support, and adds up the Jacobians.

    Args:
        value_for: unconstrained values from a site's message and its transform.
        idle: entries, by site, whose Jacobians do not count.
    """

    def __init__(self, value_for: Callable[[Any, Any], Tensor], idle: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._value_for, self._idle = value_for, idle or {}
        self.jacobians: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}  # of latent sites, like their unconstrained values: False is out

    @property
    def log_jacobian(self) -> Tensor | float:
        """Log Jacobian of all sites, in nats."""
        return sum(self.jacobians.values(), 0.0)

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]) is dist.Multinomial:
            msg["fn"] = _Multinomial(msg["fn"].total_count, logits=msg["fn"].logits)
        if msg["done"] or site_is_subsample(msg) or isinstance(_core(msg["fn"]), dist.Delta):
            return
        if msg["infer"].get("_do_not_trace"):  # drawn at random by a handler, as ConjugateReparam does
            return
        if msg["is_observed"]:
            cover(msg)
            return
        transform = latent_transform(msg["fn"])
        z = self._value_for(msg, transform)
        value = transform(z)
        mask = mask_of(msg)
        if mask is not None:
            self.masks[msg["name"]] = append_dims(mask, z).expand(z.shape)
        self.jacobians[msg["name"]] = _log_jacobian(transform, z, value, self._idle.get(msg["name"]))
        msg["value"], msg["is_observed"], msg["infer"] = value, True, {**msg["infer"], "was_latent": True}


class RedrawData(UnconditionMessenger):
    """Draws observed sites anew, but for those that are observed by construction: deterministic sites and factors.

    Pyro's ``uncondition`` draws a deterministic site of a plate with the plate's shape once more.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if is_random(msg["fn"]):
            super()._pyro_sample(msg)


def is_random(fn: Any) -> bool:
    """Tell the distribution of a random site from what is observed by construction."""
    while isinstance(fn, torch.distributions.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return not isinstance(fn, dist.Delta | dist.Unit)


def _log_jacobian(transform: Transform, z: Tensor, value: Tensor, idle: Tensor | None) -> Tensor:
    if idle is None:
        total: Tensor = transform.log_abs_det_jacobian(z, value).sum()
        return total
    while isinstance(transform, IndependentTransform):  # which has summed over idle entries and others
        transform = transform.base_transform
    jacobian = transform.log_abs_det_jacobian(z, value)
    while idle.dim() > jacobian.dim():  # a simplex is out as a whole, or not
        idle = idle[..., 0]
    return torch.where(idle.to(z.device), 0.0, jacobian).sum()


# --- Masks ---


def mask_of(msg: Any) -> Tensor | None:
    """Find a site's mask, of handlers and of its distribution; its dimensions are the first ones of a sample."""
    fn, outer = msg["fn"], msg["mask"]
    inner = _inner_mask(fn)
    if outer is None or outer is True:
        return inner
    outer = torch.as_tensor(outer).bool()
    try:
        broadcast = broadcast_shapes(outer.shape, fn.batch_shape)
    except RuntimeError:
        raise InvalidInput(
            f"the mask of site {msg['name']!r} must broadcast to batch_shape {shape_text(fn.batch_shape)}; got "
            f"{shape_text(outer.shape)}: mask whole events, or leave out to_event"
        ) from None
    if broadcast != fn.batch_shape:
        return inner
    outer = outer.expand(fn.batch_shape)
    return outer if inner is None else append_dims(outer, inner) & inner


def _inner_mask(fn: Any) -> Tensor | None:
    if isinstance(fn, dist.MaskedDistribution):
        inner = _inner_mask(fn.base_dist)
        if fn._mask is True:
            return inner
        own = torch.as_tensor(fn._mask).expand(fn.batch_shape)
        return own if inner is None else append_dims(own, inner) & inner
    if isinstance(fn, ExpandedDistribution):
        inner = _inner_mask(fn.base_dist)
        return None if inner is None else inner.expand(fn.batch_shape + inner.shape[len(fn.base_dist.batch_shape) :])
    return _inner_mask(fn.base_dist) if isinstance(fn, torch.distributions.Independent) else None


def _core(fn: Any) -> Any:
    """Unwrap what masks, expansions and ``to_event`` have put around a distribution."""
    while isinstance(fn, dist.MaskedDistribution | torch.distributions.Independent | ExpandedDistribution | _Covered):
        fn = fn.base_dist
    return fn


def cover(msg: Any) -> None:
    """Put numbers of the support in place of masked data for the density: NaN, −1 or whatever marks a missing value.

    The density does not count them, but their gradient would be 0 · NaN.  The model itself still sees the data.
    """
    fn, value, mask = msg["fn"], msg["value"], mask_of(msg)
    if mask is None and isinstance(msg["mask"], Tensor):  # of more dimensions than the site has
        mask = msg["mask"].bool()
    if mask is None or not isinstance(value, Tensor) or value.dtype == torch.bool:
        return
    shape = broadcast_shapes(value.shape, fn.shape(), mask.shape + fn.event_shape)
    mask = mask.expand(shape[: len(shape) - len(fn.event_shape)])
    if fn.support.is_discrete:
        inside = torch.as_tensor(getattr(fn.support, "lower_bound", 0)).to(value)
    else:
        try:
            inside = latent_transform(fn)(origin(msg, latent_transform(fn)))
        except InvalidInput:  # no such numbers are known
            return
    msg["fn"] = _Covered(fn, append_dims(mask, value.expand(shape)).expand(shape), inside)


class _Covered(dist.TorchDistribution):
    """A distribution whose density is asked at other values where a mask is False."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, mask: Tensor, inside: Tensor) -> None:
        self.base_dist, self._mask, self._inside = base_dist, mask, inside
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.base_dist.log_prob(torch.where(self._mask, value, self._inside))
        return log_prob


class _Multinomial(dist.Multinomial):
    """A multinomial without torch's indexing by a mask, which vmap can't follow."""

    def log_prob(self, value: Tensor) -> Tensor:
        logits = torch.where((value == 0) & (self.logits == -torch.inf), 0.0, self.logits)
        log_prob: Tensor = (
            torch.lgamma(value.sum(-1) + 1.0) - torch.lgamma(value + 1.0).sum(-1) + (logits * value).sum(-1)
        )
        return log_prob


# --- What sites are ---


class Groups(NamedTuple):
    """Names of sites by what they are to a posterior, as ArviZ groups them."""

    posterior: tuple[str, ...]  # latent ones, and those that are functions of them
    data: tuple[str, ...]
    likelihoods: tuple[str, ...]  # data, or functions of data and latent values, with a density


def groups_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> Groups:
    """Sort a model's sites by its nodes at two latent points: an observed value that differs is no data.

    Reparametrized models give a latent site the value of an observed Delta, so being observed does not make data.
    """
    posterior: list[str] = []
    data: list[str] = []
    likelihoods: list[str] = []
    for name, node in one.items():
        if node["type"] != "sample" or isinstance(node["fn"], dist.Unit) or site_is_subsample(node):
            continue
        infer, is_delta = node.get("infer") or {}, isinstance(_core(node["fn"]), dist.Delta)
        if infer.get("was_latent") or infer.get("_deterministic") or not node["is_observed"]:
            posterior.append(name)
            continue
        (posterior if _differ(node["value"], other[name]["value"]) else data).append(name)
        if not is_delta:
            likelihoods.append(name)
    return Groups(tuple(posterior), tuple(data), tuple(likelihoods))


def _differ(a: Any, b: Any) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=0.0, atol=0.0, equal_nan=True)


def refuse_discrete(model: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Name discrete latent sites and subsampling plates before anything fails because of them.

    Raises:
        InvalidInput: if there is one.
    """

    class Look(Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            name = msg["name"]
            if not callable(msg["fn"]):
                kind = type(msg["fn"]).__name__
                raise InvalidInput(
                    f"site {name!r} has torch's own {kind}, which Pyro can't sample: use pyro.distributions.{kind}"
                )
            if site_is_subsample(msg):
                size, sub = msg["fn"].size, msg["fn"].subsample_size
                if sub is not None and sub != size:
                    raise InvalidInput(
                        f"plate {name!r} subsamples {sub} of {size} rows, so the density changes from run to run: give "
                        "MCMC all the data"
                    )
            elif not hasattr(msg["fn"], "support"):
                remedy = ".marginal() of it" if hasattr(msg["fn"], "marginal") else "a Pyro distribution"
                raise InvalidInput(
                    f"site {name!r} needs a distribution; got {type(msg['fn']).__name__}, which has no support and no "
                    f"log_prob: pass {remedy}"
                )
            elif not msg["is_observed"] and msg["fn"].support.is_discrete:
                if name.endswith("_unobserved") and msg["mask"] is not None:
                    data = name.removesuffix("_unobserved")
                    raise InvalidInput(
                        f"the entries of {data!r} that obs_mask leaves open are discrete: gradients can't move them. "
                        f"Leave them out: pyro.sample({data!r}, distribution.mask(seen), obs=…) in place of obs_mask"
                    )
                raise InvalidInput(
                    f"latent site {name!r} is discrete: gradients can't move it. Sum it out of the model (as "
                    "dist.MixtureSameFamily does for mixtures), or observe it"
                )

    with torch.no_grad(), Fill(origin), Look():
        model(*args, **kwargs)


def origin(msg: Any, transform: Any) -> Tensor:
    """Make unconstrained zeros for a site, of its distribution's dtype and device."""
    like = _float_like(msg["fn"])
    return torch.zeros(transform.inverse_shape(msg["fn"].shape()), dtype=like.dtype, device=like.device)


def _float_like(fn: Any) -> Tensor:
    """Find a tensor of a distribution's own dtype and device."""
    for value in vars(fn).values():
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return value
    for value in vars(fn).values():  # what it is made of
        if isinstance(value, torch.distributions.Distribution):
            return _float_like(value)
    return torch.empty(())
