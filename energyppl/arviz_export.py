"""Groups of arrays as ArviZ knows them: ``InferenceData`` under ArviZ 0.x, ``DataTree`` under 1.x."""

import inspect
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

__all__ = ["Groups", "to_inference_data"]

Groups = dict[str, dict[str, NDArray[Any]]]
"""Arrays ``(chains, draws, *shape)`` by name, in ArviZ's groups."""


def to_inference_data(groups: Groups, attributes: Mapping[str, Any], arviz: ModuleType | None = None) -> Any:
    """Give groups to ArviZ, with attributes that say where they come from.

    Args:
        groups: those that are empty are left out.
        attributes: texts and numbers.
        arviz: the module whose ``from_dict`` is used; the installed ArviZ if None.
    """
    if arviz is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 whenever it is imported
            import arviz as installed
        arviz = installed
    groups, known = {name: group for name, group in groups.items() if group}, dict(attributes)
    if "posterior" not in inspect.signature(arviz.from_dict).parameters:  # 0.x takes groups by name, 1.x a dictionary
        return arviz.from_dict(groups, attrs={"/": known, "posterior": known}, save_warmup=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains")  # a mistake for others, the point here
        return arviz.from_dict(**groups, attrs=known, posterior_attrs=known, save_warmup=True)
