"""Chains as ArviZ knows them: ``InferenceData`` under ArviZ 0.x, ``DataTree`` under 1.x, the same groups in both."""

import inspect
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energyppl.inference.pyro_models import ModelPotential
from energyppl.inference.results import Chains

__all__ = ["export"]

Groups = dict[str, dict[str, NDArray[Any]]]


def export(chains: Chains, *, log_likelihood: bool = False, arviz: ModuleType | None = None) -> Any:
    """Hand chains to ArviZ.

    ``posterior`` holds the named variables on their own supports, ``sample_stats`` what each draw knew, under ArviZ's
    names: ``lp`` (log density of the unconstrained point, up to a constant), ``energy`` (kinetic included),
    ``acceptance_rate``, ``diverging``, ``n_steps`` (gradients), ``step_size``, ``tree_depth``.  Warm-up groups are
    there if the warm-up was kept, ``observed_data`` if the chains sampled a Pyro model.

    Args:
        chains: what :func:`~energyppl.inference.sample_chains` returned.
        log_likelihood: work out the observed sites' log likelihood too, for ``az.loo`` and ``az.compare``; it is as
            large as the draws times the data.
        arviz: the module whose ``from_dict`` is used; the installed ArviZ if None.
    """
    if arviz is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 whenever it is imported
            import arviz as installed
        arviz = installed
    groups: Groups = {"posterior": _posterior(chains), "sample_stats": _stats(chains)}
    if chains.warmup is not None:
        groups["warmup_posterior"], groups["warmup_sample_stats"] = _posterior(chains.warmup), _stats(chains.warmup)
    if isinstance(chains.potential, ModelPotential):
        groups["observed_data"] = {name: _numpy(value) for name, value in chains.potential.observed().items()}
        if log_likelihood:
            parts = chains.potential.log_likelihood(chains.draws)
            groups["log_likelihood"] = {name: _numpy(value) for name, value in parts.items()}
    groups = {name: group for name, group in groups.items() if group}
    attributes = dict(chains.attributes)
    if "posterior" in inspect.signature(arviz.from_dict).parameters:  # 0.x takes groups by name, 1.x a dictionary
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "More chains")  # a mistake for others, the point here
            return arviz.from_dict(**groups, attrs=attributes, posterior_attrs=attributes, save_warmup=True)
    return arviz.from_dict(groups, attrs={"/": attributes, "posterior": attributes}, save_warmup=True)


def _posterior(chains: Chains) -> dict[str, NDArray[Any]]:
    return {name: _numpy(value) for name, value in chains.samples.items()}


def _stats(chains: Chains) -> dict[str, NDArray[Any]]:
    stats = {
        "lp": -chains.energy,
        "acceptance_rate": chains.acceptance,
        "diverging": chains.diverging,
        "n_steps": chains.steps,
    }
    if chains.total_energy is not None:
        stats["energy"] = chains.total_energy
    if chains.tree_depth is not None:
        stats["tree_depth"] = chains.tree_depth
    if bool(torch.isfinite(chains.step_sizes).all()):
        over = (1, -1, *[1] * (chains.energy.dim() - 2))
        stats["step_size"] = chains.step_sizes.reshape(over).expand(chains.energy.shape)
    return {name: _numpy(value) for name, value in stats.items()}


def _numpy(value: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(value.detach().cpu().numpy())
