"""Chains: draws of many Markov chains, what each step knew about itself, and which chains not to trust."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import check_between, check_count, check_fields, check_flag, check_positive, shape_text
from energyppl._html import summary_table
from energyppl.arviz_export import Groups, to_inference_data
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.potentials.algebra import Potential

__all__ = ["Chains", "Variables"]

_BLOCK = 2**24  # numbers worked on at once
_ENOUGH = 50  # draws for R̂ to tell something
_RARELY = 0.01  # of the draws: a chain that moves less often stands still


Variables = Callable[[Tensor], Mapping[str, Tensor]]
"""Turns a potential's points, ``(*batch, *event)``, into the variables that a user named."""


@dataclass(frozen=True, eq=False, repr=False)
class Chains:
    """Draws of many chains with their diagnostics; ``to_arviz`` exports them to ArviZ.

    Batched targets, such as the recovery distributions of many noisy points, have their batch after chains and draws.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> chains = ep.sample_chains(ep.HMC(), normal, chains=8, draws=20, warmup=20, progress=False)
        >>> chains.flat()["x"].shape, chains.r_hat().shape, chains.stuck.shape
        (torch.Size([160, 2]), torch.Size([2]), torch.Size([8]))
    """

    draws: Tensor  # (chains, draws, *event), the potential's own (unconstrained) points
    energy: Tensor  # (chains, draws), nats
    acceptance: Tensor  # (chains, draws), mean over the steps of a draw
    diverging: Tensor  # (chains, draws), bool: any step of the draw
    moved: Tensor  # (chains, draws), bool: the point is another one than at the draw before
    steps: Tensor  # (chains, draws), gradients of the draw
    step_sizes: Tensor  # (draws,), the middle one of the chains'; NaN for a kernel made of others
    kernel: Kernel  # as it sampled
    potential: Potential
    variables: Variables = field(repr=False)
    total_energy: Tensor | None = None  # (chains, draws), nats, kinetic included
    tree_depth: Tensor | None = None  # (chains, draws)
    warmup: "Chains | None" = None  # the warm-up's draws, if they were kept
    interrupted: bool = False
    seconds: float = 0.0
    warmup_seconds: float = 0.0
    warmup_gradients: float = 0.0  # for each chain
    attributes: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the warm-up could not tune, a sentence each

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws.dim() < 2 or not self.draws.dtype.is_floating_point:
            raise InvalidInput(
                f"draws must be real points (chains, draws, *event); got {self.draws.dtype} of shape "
                f"{shape_text(self.draws.shape)}"
            )
        lead = self.energy.shape[:2]
        for name in ("energy", "acceptance", "diverging", "moved", "steps", "total_energy", "tree_depth"):
            value = getattr(self, name)
            if value is not None and (value.dim() < 2 or value.shape[:2] != lead):
                raise InvalidInput(
                    f"{name} must have chains and draws first, like energy {shape_text(self.energy.shape)}; got "
                    f"{shape_text(value.shape)}"
                )
        if self.step_sizes.shape != lead[1:]:
            raise InvalidInput(
                f"step_sizes must be one for each draw, {shape_text(lead[1:])}; got {shape_text(self.step_sizes.shape)}"
            )
        for name in ("seconds", "warmup_seconds", "warmup_gradients"):
            check_between(name, getattr(self, name), 0.0, math.inf, closed=True)

    def __repr__(self) -> str:
        event = self.draws.shape[2:]
        lines = [f"Chains: {self._size()} of points {tuple(event)}, by {type(self.kernel).__name__}"]
        lines.append(
            f"  {self.gradients:.0f} gradients a chain in {self.seconds:.1f} s, after {self.warmup_gradients:.0f} in "
            f"{self.warmup_seconds:.1f} s of warm-up; acceptance {float(self.acceptance.double().mean()):.2f}"
        )
        return "\n".join([*lines, *(f"  {remark}" for remark in self._remarks())])

    def _repr_html_(self) -> str:
        rows = {
            "kernel": type(self.kernel).__name__,
            "points": str(tuple(self.draws.shape[2:])),
            "sampling": f"{self.gradients:.0f} gradients a chain, {self.seconds:.1f} s",
            "warm-up": f"{self.warmup_gradients:.0f} gradients a chain, {self.warmup_seconds:.1f} s",
            "acceptance": f"{float(self.acceptance.double().mean()):.2f}",
        }
        return summary_table(f"Chains: {self._size()}", rows, self._remarks())

    def _size(self) -> str:
        chains, draws = self.draws.shape[:2]
        return f"{chains} chains of {draws} draws"

    def _remarks(self) -> list[str]:
        return [*self.notes, *(self.problems() or ["no problem noticed"])]

    @property
    def samples(self) -> dict[str, Tensor]:
        """The named variables on their own supports, ``(chains, draws, *shape)`` each."""
        return dict(self.variables(self.draws))

    def flat(self, count: int | None = None) -> dict[str, Tensor]:
        """Merge chains and draws of the named variables into one dimension, as ``pyro.infer.Predictive`` takes them.

        Args:
            count: keep as many, evenly spread; all if None.

        Raises:
            InvalidInput: for a count that is not a whole number from 1.
        """
        if count is not None:
            check_count("count", count)
        merged = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        total = self.draws.shape[0] * self.draws.shape[1]
        if count is None or count >= total:
            return merged
        index = torch.linspace(0, total - 1, count, dtype=torch.float64).long()  # float32 counts to 2²⁴ only
        return {name: value[index] for name, value in merged.items()}

    @property
    def gradients(self) -> float:
        """Evaluations of the gradient that sampling cost each chain, warm-up left out."""
        return float(self.steps.double().sum(1).mean())

    @property
    def not_finite(self) -> Tensor:
        """Chains, ``(chains,)`` bool, whose energy is infinite or NaN in any draw."""
        return (~torch.isfinite(self.energy)).any(1)

    @property
    def stuck(self) -> Tensor:
        """Chains, ``(chains,)`` bool, that moved in less than one draw of a hundred, or not at all."""
        if self.moved.shape[1] == 0:
            return self.moved.any(1)  # nothing is known of anyone
        return self.moved.double().mean(1) < _RARELY

    def r_hat(self) -> Tensor:
        """Estimate the split R̂ of each unconstrained coordinate, ``(*batch, *event)`` (Gelman et al. 2013).

        It tells whether chains agree; NaN with less than four draws.  ArviZ's R̂ is of ranks.
        """
        half = self.draws.shape[1] // 2
        if half < 2:
            return torch.full(self.draws.shape[2:], torch.nan)
        # A few chains at a time: the draws may lie on disk because they don't fit into memory.
        block = max(1, _BLOCK // max(1, self.draws[:1].numel()))
        means, variances = [], []
        for side in (self.draws[:, :half], self.draws[:, half : 2 * half]):
            for part in side.split(block):
                variance, mean = torch.var_mean(part.double(), 1)
                means.append(mean)
                variances.append(variance)
        return ((half - 1) / half + torch.cat(means).var(0) / torch.cat(variances).mean(0)).sqrt()

    def problems(self, *, rare: float = 0.0, disagreement: float = 1.05) -> list[str]:
        """Name what not to trust, in words; empty if nothing was noticed.

        Args:
            rare: the share of diverging draws that is passed over.
            disagreement: the split R̂ that is passed over.
        """
        check_between("rare", rare, 0.0, 1.0, closed=True)
        check_positive("disagreement", disagreement, or_infinite=True)
        found = []
        if self.interrupted:
            found.append(f"interrupted: {self.draws.shape[1]} draws of each chain were kept")
        if self.draws.shape[1] == 0:
            return found
        for name, flags, remedy in (
            (
                "never or hardly moved",
                self.stuck,
                "take smaller steps (target_acceptance=0.95), or start them elsewhere",
            ),
            ("stand where the energy is not finite", self.not_finite, "start them inside the support"),
        ):
            if bool(flags.any()):
                found.append(f"{_list(flags)} {name}: {remedy}")
        share = float(self.diverging.double().mean())
        if share > rare:
            found.append(
                f"{100 * share:.2g}% of the draws diverged: take smaller steps (target_acceptance=0.95), or write the "
                "energy more smoothly"
            )
        r_hat = self.r_hat()
        if self.draws.shape[1] >= _ENOUGH and not bool(self.stuck.all()):
            bits = ((self.draws == 0.0) | (self.draws == 1.0)).flatten(0, 1).all(0)  # may be sure of what they are
            frozen = (self.draws == self.draws[:, :1]).flatten(0, 1).all(0) & ~bits
            r_hat = r_hat.masked_fill(frozen, 1.0)
            if bool(frozen.any()):
                found.append(
                    f"coordinate(s) {frozen.flatten().nonzero()[:20, 0].tolist()} never changed in any chain: shift or "
                    "scale them, or take float64, if their spread is below the resolution of their values"
                )
        worst = float(r_hat.nan_to_num(0.0, posinf=math.inf).max())
        if worst > disagreement and self.draws.shape[1] >= _ENOUGH:
            found.append(
                f"the chains disagree (split R̂ up to {worst:.2f}): run them longer, or temper them if there are modes "
                "that they don't cross between"
            )
        return found

    def to_arviz(
        self, *, log_likelihood: bool = False, posterior_predictive: bool = False, arviz: ModuleType | None = None
    ) -> Any:
        """Export the chains to ArviZ: ``InferenceData`` under 0.x, ``DataTree`` under 1.x.

        ``posterior`` holds the named variables on their own supports, ``sample_stats`` what each draw knew, under
        ArviZ's names: ``lp`` (log density of the unconstrained point, up to a constant), ``energy`` (kinetic included),
        ``acceptance_rate``, ``diverging``, ``n_steps`` (gradients), ``step_size``, ``tree_depth``.  Warm-up groups are
        there if the warm-up was kept, ``observed_data`` if the chains sampled a Pyro model.

        Args:
            log_likelihood: work out the observed sites' log likelihood too, for ``az.loo`` and ``az.compare``; it is as
                large as the draws times the data.
            posterior_predictive: draw the observed sites anew for each draw too, for ``az.plot_ppc`` under 0.x and
                ``arviz_plots.plot_ppc_dist`` under 1.x; as large.
            arviz: the module whose ``from_dict`` is used; the installed ArviZ if None.
        """
        check_flag("log_likelihood", log_likelihood)
        check_flag("posterior_predictive", posterior_predictive)
        groups: Groups = {"posterior": self._posterior(), "sample_stats": self._stats()}
        if self.warmup is not None:
            groups["warmup_posterior"] = self.warmup._posterior()
            groups["warmup_sample_stats"] = self.warmup._stats()
        if isinstance(self.potential, ModelPotential):
            groups["observed_data"] = _arrays(self.potential.observed())
            if log_likelihood:
                groups["log_likelihood"] = _arrays(self.potential.log_likelihood(self.draws))
            if posterior_predictive:
                groups["posterior_predictive"] = _arrays(self.potential.predictive(self.draws))
        return to_inference_data(groups, self.attributes, arviz)

    def _posterior(self) -> dict[str, NDArray[Any]]:
        return _arrays(self.samples)

    def _stats(self) -> dict[str, NDArray[Any]]:
        stats = {
            "lp": -self.energy,
            "acceptance_rate": self.acceptance,
            "diverging": self.diverging,
            "n_steps": self.steps,
        }
        if self.total_energy is not None:
            stats["energy"] = self.total_energy
        if self.tree_depth is not None:
            stats["tree_depth"] = self.tree_depth
        if bool(torch.isfinite(self.step_sizes).all()):
            over = (1, -1, *[1] * (self.energy.dim() - 2))
            stats["step_size"] = self.step_sizes.reshape(over).expand(self.energy.shape)
        return _arrays(stats)


def _arrays(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in values.items()}


def _list(flags: Tensor) -> str:
    index = flags.nonzero().tolist()
    names = ", ".join(str(i[0] if len(i) == 1 else tuple(i)) for i in index[:10])
    more = f" and {len(index) - 10} more" if len(index) > 10 else ""
    return f"chain{'s' if len(index) > 1 else ''} {names}{more} of {flags.numel()}"
