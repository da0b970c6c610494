"""A trained model of some columns given the others: rows in, predictions with intervals out."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import check_between, check_count, checked
from energyppl._progress import progress_bar
from energyppl._seeds import seeded
from energyppl.data.columns import Categories
from energyppl.data.tables import Table, table_from_rows
from energyppl.data.transforms import TableTransform
from energyppl.errors import EnergyPPLError, InvalidInput, QuadratureError, warn_user
from energyppl.models.conditional import ConditionalDistribution, ConditionalEBM
from energyppl.tables.category_masses import POINTS, category_probabilities
from energyppl.tables.model import Array, Rows

__all__ = ["ConditionalTableModel", "columns_of"]

_SPREADS = 16  # draws of a target's place within its cell that its density is averaged over
_ROWS = 4096  # at a time
_DRAWN = 2**17  # quantiles, or points in categories' cells, at a time
_CHAINS = 8192  # at a time
_SCORES, _FARTHEST = 1025, 5.0  # normal scores whose quantiles draws of one number lie between, and the last


@dataclass(frozen=True, eq=False)
class ConditionalTableModel:
    """A density of some columns of a table given the others, as :func:`energyppl.tables.fit_conditional` trains it.

    Rows are told with the columns that are given; those that are predicted may be among them or not, but for
    :meth:`log_prob`.

    Attributes:
        ebm: of the target columns' coordinates given those of the others.
        target: between target columns and coordinates.
        context: between the other columns and coordinates.
        varying: the numbers of the context's coordinates that the model is told: those that vary in training rows.
        table: training rows, some of them if they are many, which say what columns rows have; targets come first.
        held_out: rows that did not train the weights, ``(m, d)``, as the table holds its values.
        curves: of the training, by name.
        record: of the training: counts, settings, why it stopped.
        validation: rows that chose the weights among those of all steps, ``(k, d)``; None if the held-out rows did.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> rooms = rng.integers(1, 6, 200)
        >>> homes = pd.DataFrame({"rooms": rooms, "price": 100.0 * rooms + 30.0 * rng.normal(size=200)})
        >>> model = ep.tables.fit_conditional(homes, "price", steps=5, levels=3, progress=False)
        >>> model.predict(pd.DataFrame({"rooms": [2, 4]})).columns.tolist()
        ['price_mean', 'price_median', 'price_lower', 'price_upper', 'far']
    """

    ebm: ConditionalEBM
    target: TableTransform
    context: TableTransform
    varying: NDArray[np.int64]
    table: Table
    held_out: Array
    curves: dict[str, Array] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    validation: Array | None = None

    def __repr__(self) -> str:
        """Summarize in one line."""
        return (
            f"ConditionalTableModel({', '.join(self.targets)} given {', '.join(self.given)}; {len(self.table.values)} "
            f"training rows kept, {len(self.held_out)} held out)"
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the columns that are predicted."""
        return self.target.names

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the columns that they are predicted from."""
        return self.context.names

    @property
    def given_table(self) -> Table:
        """The training rows' columns that others are predicted from."""
        return columns_of(self.table, self.given)

    # --- Predictions ---

    @checked
    def predict(
        self, rows: Rows, *, draws: int = 200, confidence: float = 0.9, seed: int = 0, progress: bool = False
    ) -> pd.DataFrame:
        """Predict the target columns of rows, with intervals, in the table's units.

        Of one target column the answer is integrated, by ``draws`` quantiles of equal probability; several are drawn
        by chains, which takes minutes for hundreds of rows.  Predictions have the noise of the lowest level, .011
        standard deviations of the target's coordinate, or .05 of several.

        Args:
            rows: with the columns that are given.
            draws: for each row.
            confidence: of the central intervals.
            seed: of the chains.
            progress: show a bar.

        Returns:
            A line for each row, with the index of a frame that was passed.  For each target of numbers its mean, its
            median and the ends of its interval, ``NAME_mean``, ``NAME_median``, ``NAME_lower`` and ``NAME_upper``; for
            each target of categories the commonest and its share of the draws, ``NAME_mode`` and ``NAME_share``.
            ``far`` marks rows that are nowhere near those of the training, or that have a value which its column never
            can be: a guess, of which a warning says how many, or NaN where the density there can't be integrated.

        Raises:
            InvalidInput: for rows without those columns or with missing cells, or too few draws for the intervals.
            QuadratureError: if the density of a row near others is too sharp for the grid.
        """
        check_between("confidence", confidence, 0.0, 1.0)
        check_count("draws", draws)
        fewest = math.ceil(2.0 / (1.0 - confidence) - 1e-9)
        if draws < fewest:
            raise InvalidInput(f"draws must be at least {fewest} for intervals of {confidence:.1%}; got {draws}")
        values = self._given_of(rows)
        middles = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        parts, far = [], []
        with seeded(seed), progress_bar(total=len(values), desc="predicting rows", disable=not progress) as bar:
            for p, own in self._distributions(values, draws):
                away = own | p.is_far.cpu().numpy()
                parts.append(self._summaries(self._draws_or_gaps(p, middles, away), confidence))
                far.append(away)
                bar.update(len(own))
        found = pd.concat(parts, ignore_index=True).assign(far=np.concatenate(far))
        if isinstance(rows, pd.DataFrame):
            found.index = rows.index
        if found.far.any():
            warn_user(
                f"{int(found.far.sum())} of {len(found)} rows lie nowhere near those that the model was trained with: "
                "what it says there is a guess; the column far marks them"
            )
        return found

    @checked
    def sample(self, rows: Rows, draws: int = 1, *, seed: int | None = None) -> pd.DataFrame:
        """Draw the target columns of rows, with the table's dtypes and names, as texts where they were numbers.

        Args:
            rows: with the columns that are given.
            draws: for each row.
            seed: of the draws; torch's global generator goes on if None.

        Returns:
            ``draws`` lines for each row, those of the first row first.

        Raises:
            InvalidInput: for rows without those columns or with missing cells.
        """
        check_count("draws", draws)
        values = self._given_of(rows)
        with nullcontext() if seed is None else seeded(seed):
            drawn = np.concatenate(
                [
                    self._independent(p, draws).swapaxes(0, 1)
                    for p, _ in self._distributions(values, max(draws, _SCORES))
                ]
            )
        return columns_of(self.table, self.targets).frame(drawn.reshape(-1, len(self.targets)))

    # --- Densities ---

    @checked
    def log_prob(self, rows: Rows, *, seed: int = 0, spreads: int = _SPREADS) -> Array:
        """Return the log densities of the targets of rows given their other columns, ``(n,)``, in nats.

        They are counted as those of :meth:`TableModel.log_prob`: a density for each unit of continuous columns, a
        probability for each value of others.  log Z is integrated for each row if the targets have one coordinate;
        the probabilities of one target's categories sum to 1; else log Z is what training implies, which is not exact.

        Args:
            rows: with all columns.
            seed: of the places within cells.
            spreads: draws of these; one target of categories is integrated, and needs neither.

        Raises:
            InvalidInput: for rows of other columns or with missing cells.
            QuadratureError: if a row's density is too sharp for the grid.
            EnergyPPLError: if a density is not a number.
        """
        check_count("spreads", spreads)
        values = table_from_rows(rows, like=self.table).values
        found, done, count = [], 0, len(self.targets)
        spreads = spreads if self.target.random else 1
        for p, _ in self._distributions(values[:, count:], spreads):
            own = values[done : done + p.batch_shape[0], :count]
            done += len(own)
            if self.of_categories:
                with torch.no_grad():
                    found.append(self._masses(p).log().numpy()[np.arange(len(own)), own[:, 0].astype(np.int64)])
                continue
            z, weight = (np.stack(part) for part in zip(*self.target.spreads(own, spreads, seed), strict=True))
            with torch.no_grad():
                log_density = p.log_prob(torch.as_tensor(z).to(self.ebm.loc)).double().cpu().numpy()
            summed = np.logaddexp.reduce(np.where(np.isneginf(weight), -np.inf, log_density + weight), 0)
            found.append(summed - math.log(spreads))
        scores: Array = np.concatenate(found)
        if np.isnan(scores).any():
            raise EnergyPPLError(
                f"the density of row {int(np.isnan(scores).argmax())} is not a number: the model's training went "
                "wrong, fit it again"
            )
        return scores

    # --- Inside ---

    def central_draws(self, rows: Rows, draws: int) -> Array:
        """Return draws of the targets of rows, ``(draws, n, k)``, among which the truth's rank is uniform.

        Of one column they are its quantiles at 1/(draws + 1), 2/(draws + 1), …, else draws by chains.
        """
        check_count("draws", draws)
        places = torch.arange(1, draws + 1, dtype=torch.float64) / (draws + 1)
        parts = self._distributions(self._given_of(rows), draws)
        return np.concatenate([self._draws(p, places) for p, _ in parts], 1)

    def told(self, values: Array) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return what the model is told of given columns ``(n, c)``, and which rows have a value that can't be."""
        z, outside = self.context.middles(values)
        return torch.as_tensor(z[:, self.varying]).to(self.ebm.loc), outside

    def _given_of(self, rows: Rows) -> Array:
        return table_from_rows(rows, like=self.given_table).values

    @property
    def by_chains(self) -> bool:
        """True if draws come by chains, as those of several columns do."""
        return len(self.targets) > 1

    @property
    def of_categories(self) -> bool:
        """True if the target is one column of three categories or more."""
        return not self.by_chains and isinstance(self.target.columns[0], Categories)

    def _distributions(self, values: Array, draws: int) -> Iterator[tuple[ConditionalDistribution, NDArray[np.bool_]]]:
        """Yield the distributions of some rows at a time, and which of these have a value that can't be."""
        if self.of_categories:
            draws = max(draws, POINTS)
        at_once = max(1, min(_ROWS, (_CHAINS if self.by_chains else _DRAWN) // draws))
        for part in np.split(values, range(at_once, len(values), at_once)):
            context, outside = self.told(part)
            yield self.ebm.given_unchecked(context), outside

    def _draws(self, p: ConditionalDistribution, places: Tensor) -> Array:
        """Return quantiles at ``places`` of one target column, as many draws of several, ``(draws, n, k)``."""
        with torch.no_grad():
            if self.by_chains:
                return self._decoded(p.sample((len(places),)))
            if not self.of_categories:
                return self._decoded(p.quantiles(places)[..., None])
            return self._categories(p, places.expand(*p.batch_shape, -1).contiguous())

    def _draws_or_gaps(self, p: ConditionalDistribution, places: Tensor, far: NDArray[np.bool_]) -> Array:
        """Return :meth:`_draws`, NaN for rows far away whose density can't be integrated."""
        try:
            return self._draws(p, places)
        except QuadratureError:
            if not far.any():
                raise
            if len(far) == 1:
                return np.full((len(places), 1, len(self.targets)), np.nan)
        half = len(far) // 2
        parts = [(p.context[rows], far[rows]) for rows in (slice(half), slice(half, None))]
        return np.concatenate([self._draws_or_gaps(self.ebm.given_unchecked(c), places, own) for c, own in parts], 1)

    def _categories(self, p: ConditionalDistribution, places: Tensor) -> Array:
        """Return the categories at probabilities ``(n, draws)``, ``(draws, n, 1)``."""
        below = self._masses(p).cumsum(1)[:, :-1].contiguous()
        return torch.searchsorted(below, places, right=True).T[..., None].double().numpy()

    def _masses(self, p: ConditionalDistribution) -> Tensor:
        """Return the probabilities of the categories of one target column, ``(n, categories)``, float64."""

        def log_density(codes: Array) -> Tensor:
            z = torch.as_tensor((codes - self.target.loc) / self.target.scale).to(self.ebm.loc)
            return p.unnormalized().log_prob(z[:, None].expand(-1, *p.batch_shape, -1))

        column = self.target.columns[0]
        assert isinstance(column, Categories)
        return category_probabilities(column, log_density)

    def _independent(self, p: ConditionalDistribution, draws: int) -> Array:
        """Return draws, ``(draws, n, k)``; of one column by its quantiles, interpolated between normal scores."""
        if self.by_chains:
            return self._draws(p, torch.ones(draws))
        if self.of_categories:
            with torch.no_grad():
                return self._categories(p, torch.rand(*p.batch_shape, draws, dtype=torch.float64))
        scores = torch.linspace(-_FARTHEST, _FARTHEST, _SCORES, dtype=torch.float64)
        with torch.no_grad():
            known = p.quantiles(torch.special.ndtr(scores)).cpu()  # (scores, n)
        drawn = torch.randn(draws, known.shape[1], dtype=torch.float64).clamp(-_FARTHEST, _FARTHEST)
        place = (drawn + _FARTHEST) / (2.0 * _FARTHEST) * (_SCORES - 1)
        below = place.long().clamp(max=_SCORES - 2)
        z = torch.lerp(known.gather(0, below), known.gather(0, below + 1), (place - below).to(known))
        return self._decoded(z[..., None])

    def _decoded(self, z: Tensor) -> Array:
        """Return the values of coordinates ``(*batch, D)``, ``(*batch, k)``."""
        if not bool(torch.isfinite(z).all()):
            raise EnergyPPLError("the model's draws are not finite: its training went wrong, fit it again")
        rows = z.double().cpu().numpy()
        return self.target.decode(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], len(self.targets))

    def is_category(self, j: int) -> bool:
        """Tell whether target number ``j`` is predicted by its commonest value: categories and booleans are."""
        return bool(self.table.labels[j]) or self.table.dtypes[j] in ("bool", "boolean")

    def _summaries(self, drawn: Array, confidence: float) -> pd.DataFrame:
        found: dict[str, Any] = {}
        tail = 0.5 * (1.0 - confidence)
        for j, name in enumerate(self.targets):
            own = drawn[..., j]
            if self.is_category(j):
                values = np.arange(float(len(self.table.labels[j]) or 2))
                shares = (own[..., None] == values).mean(0)
                gap = np.isnan(own).all(0)
                best = np.where(gap, np.nan, values[shares.argmax(1)])
                words = columns_of(self.table, (name,)).frame(best[:, None])[name]
                found |= {f"{name}_mode": words, f"{name}_share": np.where(gap, np.nan, shares.max(1))}
                continue
            low, middle, high = np.quantile(own, [tail, 0.5, 1.0 - tail], axis=0, method="hazen")
            ends = {f"{name}_median": middle, f"{name}_lower": low, f"{name}_upper": high}
            found |= {f"{name}_mean": own.mean(0), **ends}
        return pd.DataFrame(found)


def columns_of(table: Table, names: tuple[str, ...]) -> Table:
    """Return a table's columns of these names, in their order."""
    places = [table.columns.index(name) for name in names]
    labels, dtypes = (tuple(table.labels[j] for j in places), tuple(table.dtypes[j] for j in places))
    return Table(table.values[:, places], names, tuple(table.grids[j] for j in places), table.source, labels, dtypes)
