"""Groups of arrays as ArviZ knows them: ``InferenceData`` under ArviZ 0.x, ``DataTree`` under 1.x."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from energyppl.errors import InvalidInput

__all__ = ["Groups", "check_names", "to_inference_data"]

Groups = dict[str, dict[str, NDArray[Any]]]
"""Arrays ``(chains, draws, *shape)`` by name, in ArviZ's groups."""


_DIMENSIONS = ("chain", "draw", "sample")  # the last one is what az.extract makes of the others


def check_names(shapes: Mapping[str, Sequence[int]]) -> None:
    """Require variables of one group, with their shapes, to be called other than ArviZ's dimensions.

    Raises:
        InvalidInput: for one that ArviZ would take for a dimension's coordinate, and drop.
    """
    axes = {f"{name}_dim_{i}": name for name, shape in shapes.items() for i in range(len(shape))}
    for name in shapes:
        if name in _DIMENSIONS or name in axes:
            owner = f" of {axes[name]!r}" if name in axes else ""
            raise InvalidInput(
                f"a site can't be called {name!r}: ArviZ has a dimension{owner} of that name, and the site would "
                "vanish from to_arviz. Give it another name"
            )


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
    with warnings.catch_warnings():  # more chains than draws are a mistake for others, and the point here
        warnings.filterwarnings("ignore", "More chains|Found chain dimension to be longer")
        if "posterior" not in inspect.signature(arviz.from_dict).parameters:  # 0.x: groups by name, 1.x: a dictionary
            return arviz.from_dict(groups, attrs={"/": known, "posterior": known}, save_warmup=True)
        return arviz.from_dict(**groups, attrs=known, posterior_attrs=known, save_warmup=True)
