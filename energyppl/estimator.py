"""A density estimator in the shape of scikit-learn's: for pipelines, searches over settings, and cross-validation.

scikit-learn is not needed to import or to fit it, and not a dependency: ``pip install energyppl[sklearn]`` brings it.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from energyppl._checks import check_count, numpy_of, without_mask
from energyppl._seeds import seeded
from energyppl.errors import InvalidInput
from energyppl.inference.training.contract import held_out_places
from energyppl.inference.training.fit import fit
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions, suited_options
from energyppl.models.base import EnergyModel
from energyppl.models.of_columns import (
    TRAINED_LOG_SNR_MAX,
    model_of_columns,
    suited_log_snr_max,
    with_noise_that_pays,
)

__all__ = ["EnergyDensity"]

_CHOOSING = 20  # rows, of which the tenth that is set aside has an error

_Self = TypeVar("_Self", bound="EnergyDensity")
_Model = TypeVar("_Model", bound=EnergyModel)


class EnergyDensity:
    """An energy-based density of rows of numbers, with the methods of scikit-learn's estimators.

    By default the model of :func:`energyppl.models.model_of_columns`, trained by recovery likelihood in one and two
    columns and by score matching above, on the rows as they are (:func:`energyppl.tables.fit` and the command line
    train it on transformed columns).  A tenth of the rows is set aside: it chooses the weights and, above two columns,
    level 0's noise, as for tables.  The estimator goes into a ``Pipeline``, where the steps before it transform the
    rows and their densities count in the transformed units, and into ``GridSearchCV``, which maximizes :meth:`score`.

    Args:
        steps: updates at most; what suits the model if None, like all that follows where it is None.
        batch_size: rows in a batch.
        learning_rate: the optimizer's.
        weight_decay: of the network's weights.
        levels: noise levels, at least 1; if None 6 in one and two columns and 20 in more, or what nearly dependent
            columns need.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        model: a function of the number of columns that builds another model, in place of levels, hidden and depth.
        objective: what to minimize; the one that the model names if None.
        device: where to train, such as ``"cuda"``.
        random_state: a whole number that makes :meth:`fit`, and scores and draws after it, the same at every call, or
            a ``numpy.random.RandomState`` that ``fit`` draws one from; torch's own random numbers if None.
        progress: show a bar.

    Attributes:
        model_: the trained model, for whatever else this library does with one.
        history_: one record a step, and why training stopped.
        n_features_in_: how many columns.
        feature_names_in_: their names, if they came in a DataFrame with names.

    Example:
        >>> import numpy as np
        >>> density = ep.estimator.EnergyDensity(steps=2, hidden=16, depth=1, random_state=0)
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> density.fit(rows).score_samples(rows[:3]).shape, density.sample(5).shape
        ((3,), (5, 2))
        >>> density.get_params()["steps"]
        2
    """

    model_: EnergyModel
    history_: History
    n_features_in_: int

    def __init__(
        self,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        levels: int | None = None,
        hidden: int = 128,
        depth: int = 3,
        model: Callable[[int], EnergyModel] | None = None,
        objective: Any = None,
        device: str | torch.device | None = None,
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        # As scikit-learn wants it: arguments are kept as they are, and checked by fit.
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.levels = levels
        self.hidden = hidden
        self.depth = depth
        self.model = model
        self.objective = objective
        self.device = device
        self.random_state = random_state
        self.progress = progress

    # --- What an estimator does ---

    def fit(self: _Self, X: ArrayLike, y: object = None) -> _Self:
        """Train on rows ``(n, columns)``.

        Args:
            X: numbers: an array, a DataFrame or a tensor, finite, without constant columns; three rows at least.
            y: not used.

        Raises:
            InvalidInput: for anything else, or settings out of their range; a ``ValueError``.
            TrainingDiverged: see :func:`energyppl.fit`.
        """
        rows = self._rows(X, fitting=True)
        if len(rows) < 3:
            raise InvalidInput(f"X must have at least 3 rows; got n_samples={len(rows)}: pass more data")
        with self._random_numbers(_seed(self.random_state)) as self._drawn_seed:
            self.model_, self.history_ = self._trained(rows)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the log density of rows, ``(n, columns)`` to ``(n,)``, in nats.

        The first call estimates log Z, by quadrature up to two columns and by annealing above, with a warning where
        that can't be trusted; it is kept.

        Raises:
            InvalidInput: for rows of another width, or that are not finite; a ``ValueError``.
        """
        self._require_fitted()
        rows = self._rows(X, fitting=False)
        with self._random_numbers(self._drawn_seed), torch.no_grad():
            log_prob: NDArray[np.float64] = self.model_.log_prob(rows.to(self.model_.loc)).double().cpu().numpy()
        return log_prob

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return the mean log density of rows, ``(n, columns)``, in nats: higher is better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.float64]:
        """Draw rows, ``(n_samples, columns)``.

        Args:
            n_samples: how many.
            random_state: a whole number that makes the draws the same at every call, or a
                ``numpy.random.RandomState`` to draw one from; what ``fit`` used if None, so with a ``random_state`` of
                the estimator's own every call gives the same rows.
        """
        self._require_fitted()
        check_count("n_samples", n_samples)
        with self._random_numbers(self._drawn_seed if random_state is None else _seed(random_state)):
            rows: NDArray[np.float64] = self.model_.sample((n_samples,)).double().cpu().numpy()
        return rows

    # --- What an estimator is asked ---

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set arguments by name.

        Raises:
            InvalidInput: for a name that is none of them; a ``ValueError``.
        """
        for name, value in params.items():
            if name not in self._names():
                raise InvalidInput(
                    f"Invalid parameter {name!r} for {type(self).__name__}: choose from {', '.join(self._names())}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = inspect.signature(type(self).__init__).parameters
        chosen = {name: value for name, value in self.get_params().items() if value is not usual[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn (1.6 and later) asks of an estimator."""
        tags = import_module("sklearn.utils")
        return tags.Tags(
            estimator_type="density_estimator",
            target_tags=tags.TargetTags(required=False),
            non_deterministic=self.random_state is None,
        )

    # --- Inside ---

    def _trained(self, rows: Tensor) -> tuple[EnergyModel, History]:
        if self.model is not None:
            return self._fitted(self.model(rows.shape[1]), rows)
        # Level 0's noise is chosen by densities that a level tie implies, which another objective may not have.
        chosen = rows.shape[1] > 2 and self.objective is None and len(rows) >= _CHOOSING
        suited = suited_log_snr_max(rows, least=TRAINED_LOG_SNR_MAX if chosen else None)
        settings: dict[str, Any] = {"levels": self.levels, "hidden": self.hidden, "depth": self.depth}
        model, history = self._fitted(model_of_columns(rows.shape[1], log_snr_max=suited, **settings), rows)
        if not chosen:
            return model, history
        held_out = rows[torch.from_numpy(held_out_places(len(rows)))]  # which ``fit`` has set aside
        return with_noise_that_pays(model, suited_log_snr_max(rows), self.levels, rows, held_out), history

    def _fitted(self, model: _Model, rows: Tensor) -> tuple[_Model, History]:
        objective = getattr(model, "default_objective", None) if self.objective is None else None
        objective = self.objective if objective is None else objective()
        history = fit(
            model,
            rows.to(next(model.parameters()).dtype),
            objective,
            options=self._options(objective, model),
            device=self.device,
            progress=self.progress,
        )
        return model, history

    def _options(self, objective: Any, model: EnergyModel) -> TrainingOptions:
        suited = suited_options(objective, model)
        names = ("steps", "batch_size", "learning_rate", "weight_decay")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        every = min(suited.evaluate_every, chosen.get("steps", suited.steps))
        return replace(suited, evaluate_every=every, **chosen)

    def _rows(self, X: Any, *, fitting: bool) -> Tensor:
        """Return rows of numbers, in float64; note their number and names, or compare these with those of ``fit``."""
        names = _column_names(X)
        rows = _numbers(X, type(self).__name__)
        if fitting:
            self.n_features_in_ = rows.shape[1]
            if names is not None:
                self.feature_names_in_ = names
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif rows.shape[1] != self.n_features_in_:
            raise InvalidInput(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input: pass the columns that it was fitted on"
            )
        elif names is not None and list(names) != list(getattr(self, "feature_names_in_", names)):
            raise InvalidInput(
                f"The feature names should match those that were passed during fit, {list(self.feature_names_in_)}; "
                f"got {list(names)}: pass the same columns in the same order"
            )
        return rows

    @contextmanager
    def _random_numbers(self, seed: int | None) -> Iterator[int | None]:
        """Use random numbers of a seed inside, and torch's own where there is none."""
        if seed is None:
            yield None
            return
        with seeded(seed):
            yield seed

    def _require_fitted(self) -> None:
        if hasattr(self, "model_"):
            return
        words = f"This {type(self).__name__} instance is not fitted yet: call fit before"
        try:
            error = import_module("sklearn.exceptions").NotFittedError
        except ImportError:
            error = InvalidInput
        raise error(words)


def _seed(random_state: Any) -> int | None:
    if random_state is None:
        return None
    if isinstance(random_state, (np.random.RandomState, np.random.Generator)):
        draw = random_state.integers if isinstance(random_state, np.random.Generator) else random_state.randint
        return int(draw(2**31 - 1))
    if not isinstance(random_state, numbers.Integral) or random_state < 0:
        raise InvalidInput(
            f"random_state must be None, a whole number from 0 or a numpy.random.RandomState; got {random_state!r}"
        )
    return int(random_state)


def _column_names(X: Any) -> NDArray[Any] | None:
    columns = getattr(X, "columns", None)
    names = None if columns is None else [*columns]
    return np.array(names, dtype=object) if names and all(isinstance(name, str) for name in names) else None


def _numbers(X: Any, who: str) -> Tensor:
    """Return rows ``(n, columns)`` in float64, in the words of scikit-learn where they can't be had.

    Raises:
        InvalidInput: for anything but finite real numbers in rows.
    """
    if isinstance(X, Tensor):
        X = numpy_of("X", X)
    if hasattr(X, "tocsr"):
        raise InvalidInput(f"{who} needs dense rows; got a sparse matrix: pass X.toarray()")
    values = np.asarray(without_mask(X))
    if values.dtype.kind == "c":
        raise InvalidInput("Complex data not supported: pass real numbers")
    try:
        if values.dtype == object and (empty := pd.isna(values)).any():  # the nullable dtypes' own missing value
            values = np.where(empty, np.nan, values)
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"X must hold numbers ({error}): encode or drop its other columns") from error
    if values.ndim != 2:
        raise InvalidInput(
            f"Expected 2D array, got {values.ndim}D array instead: Reshape your data into (rows, columns)"
        )
    for axis, what in ((0, "sample"), (1, "feature")):
        if values.shape[axis] < 1:
            raise InvalidInput(
                f"Found array with {values.shape[axis]} {what}(s) (shape={values.shape}) while a minimum of 1 is "
                f"required by {who}: pass more data"
            )
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values).all(1)).nonzero()[0][0])
        raise InvalidInput(f"Input X contains NaN or infinity, first in row {row}: drop or impute such rows")
    return torch.from_numpy(values)
