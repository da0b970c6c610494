"""Quality of a table's model: held-out density beside two baselines, tests of its samples, and a verdict in words."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import checked
from energyppl._numerals import plain
from energyppl._seeds import seeded
from energyppl.data.columns import Numbers
from energyppl.data.tables import Table
from energyppl.data.transforms import TableTransform
from energyppl.errors import EnergyPPLError
from energyppl.inference.evaluation.regions import region_masses
from energyppl.integration.estimates import LogNormalizer
from energyppl.metrics.two_sample import energy_distance_test
from energyppl.potentials.bases import MixtureBase
from energyppl.potentials.mixture_fit import fit_mixture
from energyppl.tables.model import Array, TableModel

__all__ = ["column_tests", "mean_and_error", "mixture_log_density", "pair_tests", "quality"]

_LIKE = 0.05  # p-values below say that samples differ
_WORST = 0.01  # the same of the worst of several columns or pairs, after Bonferroni's correction
_FAR_APART = 0.5  # nats between log Z and what training alone implies
_TESTED = 1000  # rows on each side of the two-sample test
_REGIONS, _NAMED = 12, 3  # regions whose masses are compared, and columns that name one
_FEWEST_ROWS = 100  # for that
_FEW_ROWS = 500  # below, a simpler model may well be the better one
_EXACT = 100  # rows, below which the test of a column is exact
_FEW_HELD_OUT = 30  # below, tests of samples see gross differences alone


@checked
def quality(
    model: TableModel, samples: Array | None = None, log_z: LogNormalizer | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Measure a model on its held-out rows and say in words what is good, what is not, and what to try.

    Args:
        model: of a table; held-out rows with missing cells are left out.
        samples: of the model, ``(n, d)`` as the table holds its values; 1000 of its own if None.
        log_z: of the coordinates' energy; estimated if None.
        seed: of all that is random.

    Returns:
        ``log_density``, the mean over held-out rows in nats and the table's units, with its standard error, log Z's
        included; ``mixture`` and ``independent``, by how much that is above a mixture of Gaussians and above the
        columns' own mixtures multiplied, both fitted to the same coordinates of the training rows;
        ``held_out_chose_weights``, true of tables of fewer than 1000 rows, whose figures are a little too good;
        ``log_z``, where training alone implies 0, but of an average; ``noise``, level 0's over the standard deviation
        of each transformed column: the density has no finer detail; ``energy_distance``, a two-sample test of samples
        and held-out rows; ``worst_column`` and ``worst_pair``, which differ most; ``regions``, where the density's
        masses differ from those of rows or samples; ``verdict``, sentences.

    Raises:
        EnergyPPLError: if fewer than two held-out rows are complete.

    Example:
        >>> import numpy as np
        >>> model = ep.tables.fit(np.random.default_rng(0).normal(size=(60, 2)), steps=5, progress=False)
        >>> len(ep.tables.quality(model)["verdict"]) >= 3
        True
    """
    with seeded(seed):
        return _measured(model, samples, log_z, seed)


def _measured(model: TableModel, samples: Array | None, log_z: LogNormalizer | None, seed: int) -> dict[str, Any]:
    held_out = model.held_out[~np.isnan(model.held_out).any(1)]
    if len(held_out) < 2:
        raise EnergyPPLError("fewer than two held-out rows are without missing cells: there is nothing to compare with")
    log_z = model.log_normalizer() if log_z is None else log_z
    samples = model.sample_values(_TESTED) if samples is None else samples
    own = model.mean_over_cells(held_out, model.minus_energy, seed=seed) - log_z.estimate
    rows = model.rows[~np.isnan(model.rows).any(1)]
    generator = torch.Generator().manual_seed(seed)
    training = model.encode(rows, generator)[0].double()
    places = model.transform.places()
    baselines = {
        "mixture": mixture_log_density(training, [slice(None)]),
        "independent": mixture_log_density(training, list(places)),
    }
    above = {name: own - model.mean_over_cells(held_out, base, seed=seed) for name, base in baselines.items()}
    x, y = (model.encode(v[:_TESTED], generator)[0].double().cpu() for v in (held_out, samples))
    test = energy_distance_test(x, y)
    ebm = model.ebm
    jacobian = float(ebm.scale.log().sum()) + len(ebm.scale) * math.log(float(ebm.schedule.marginal_std[0]))
    found: dict[str, Any] = {
        "log_density": mean_and_error(own, log_z.standard_error),
        **{name: mean_and_error(difference, log_z.standard_error) for name, difference in above.items()},
        "held_out_chose_weights": model.validation is None,
        "log_z": {
            "value": log_z.estimate - jacobian,
            "standard_error": log_z.standard_error,
            "method": log_z.method,
            "warning": log_z.warning,
        },
        "noise": float(ebm.schedule.sigma_bar[0] / ebm.schedule.alpha_bar[0]),
        "energy_distance": {"statistic": test.statistic, "p_value": test.p_value, "rows": [len(x), len(y)]},
        "worst_column": column_tests(model.table, held_out, samples)[0],
        "worst_pair": next(iter(pair_tests(model.transform, held_out, samples)), None),
        "regions": _regions(model, training, y),
    }
    return {**found, "verdict": _verdict(found, model)}


def _regions(model: TableModel, rows: Tensor, samples: Tensor) -> list[str]:
    """Say where the density's masses differ from those of training rows and samples, the largest first."""
    if len(rows) < _FEWEST_ROWS:
        return []
    like = model.ebm.loc
    masses = region_masses(model.ebm, rows.to(like), samples=samples.to(like), regions=_REGIONS)
    middle, spread = rows.mean(0), rows.std(0).clamp(min=1e-12)

    def describe(center: Tensor) -> str:
        """Name the columns in which a region's centre is farthest from the mean."""
        away = ((center.double() - middle) / spread).abs()
        farthest = sorted(range(len(model.columns)), key=lambda j: -float(away[model.transform.places()[j]].max()))
        values = model.decode(center[None])[0]
        return ", ".join(f"{model.columns[j]} = {model.words(j, values[j])}" for j in sorted(farthest[:_NAMED]))

    return masses.problems(describe)


def mixture_log_density(rows: Tensor, blocks: list[slice]) -> Callable[[Tensor], Array]:
    """Return the log density of mixtures fitted to blocks of coordinates, each independent of the others."""
    fitted = [(block, MixtureBase(*fit_mixture(rows[:, block].cpu(), defensive=False))) for block in blocks]

    def log_density(z: Tensor) -> Array:
        points = z.double().cpu()
        return -torch.stack([mixture(points[:, block]) for block, mixture in fitted]).sum(0).numpy()

    return log_density


def column_tests(
    table: Table, one: Array, other: Array, sides: tuple[str, str] = ("held-out rows", "samples")
) -> list[dict[str, Any]]:
    """Compare each column of two samples, by Kolmogorov and Smirnov or, of categories, by χ²; the worst first.

    Args:
        table: whose columns they have.
        one: rows, ``(n, d)``.
        other: rows, ``(m, d)``.
        sides: what to call both.

    Returns:
        For each column its name, p-value after Bonferroni's correction, and medians or the shares that differ most.
    """
    from scipy import stats  # takes half a second to import

    found = []
    for name, labels, x, y in zip(table.columns, table.names_of_values(), one.T, other.T, strict=True):
        if labels:
            counts = np.stack([np.bincount(v.astype(np.int64), minlength=len(labels)) for v in (x, y)])
            counts = counts[:, counts.sum(0) > 0]
            shares = [np.bincount(v.astype(np.int64), minlength=len(labels)) / len(v) for v in (x, y)]
            odd = int(np.abs(shares[0] - shares[1]).argmax())
            p_value = float(stats.chi2_contingency(counts)[1]) if counts.shape[1] > 1 else 1.0
            ours, theirs, what = f"{shares[0][odd]:.1%}", f"{shares[1][odd]:.1%}", f"the share of {labels[odd]}"
        else:
            # Of many rows the exact p-value may underflow, of which scipy warns.
            method = "auto" if min(len(x), len(y)) < _EXACT else "asymp"
            test = stats.ks_2samp(x, y, method=method)
            p_value = float(test.pvalue)
            low, high = (np.append(np.quantile(v, [0.05, 0.5, 0.95]), v.mean()) for v in (x, y))
            # Columns of few values differ in their means alone; heavy tails make means say nothing.
            j = int(np.abs((high - low)[:3]).argmax()) if (high[:3] != low[:3]).any() else 3
            ours, theirs = plain(low[j]), plain(high[j])
            what = ("the 5 % quantile", "the median", "the 95 % quantile", "the mean")[j]
            if ours == theirs:  # as where both hold many rows at one value, and others about it
                at = float(test.statistic_location)
                ours, theirs = (f"{(v <= at).mean():.1%}" for v in (x, y))
                what = f"the share up to {plain(at)}"
        said = f"{what} is {ours} in {sides[0]}, {theirs} in {sides[1]}"
        found.append({"column": name, "p_value": min(1.0, p_value * len(table.columns)), "said": said})
    return sorted(found, key=lambda test: test["p_value"])


def pair_tests(transform: TableTransform, one: Array, other: Array) -> list[dict[str, Any]]:
    """Compare the correlations of two samples' coordinates by Fisher's z; the worst pair of columns first.

    Returns:
        For each pair both correlations and the p-value after Bonferroni's correction.
    """
    from scipy import stats  # takes half a second to import

    generator = torch.Generator().manual_seed(0)
    coordinates = [transform.encode(v, generator)[0] for v in (one, other)]
    with np.errstate(invalid="ignore", divide="ignore"):  # a rare value can be missing from few rows
        here, there = (np.nan_to_num(np.atleast_2d(np.corrcoef(z.T))) for z in coordinates)
    places = transform.places()
    few = min(len(one), len(other)) <= 3  # which any correlation may be of
    error = math.inf if few else math.sqrt(sum(1.0 / (len(v) - 3) for v in (one, other)))
    found = []
    for i, first in enumerate(places):
        for j in range(i):
            a, b = (np.clip(r[first, places[j]], -0.9999, 0.9999) for r in (here, there))
            place = np.unravel_index(np.abs(np.arctanh(a) - np.arctanh(b)).argmax(), a.shape)
            z = float(np.arctanh(a[place]) - np.arctanh(b[place])) / error
            found.append((z, [transform.names[j], transform.names[i]], float(a[place]), float(b[place]), a.size))
    count = sum(size for *_, size in found)
    tests = [
        {"columns": names, "one": a, "other": b, "p_value": min(1.0, count * 2.0 * float(stats.norm.sf(abs(z))))}
        for z, names, a, b, _ in found
    ]
    return sorted(tests, key=lambda test: test["p_value"])


def mean_and_error(values: Array, more: float = 0.0) -> dict[str, float]:
    """Return the mean of values, ``(n,)``, and its standard error, to which another one is added."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"value": float(values.mean()), "standard_error": math.hypot(error, more)}


# --- The verdict ---


def _verdict(found: dict[str, Any], model: TableModel) -> list[str]:
    mixture, log_z = found["mixture"], found["log_z"]
    chose = "; they also chose the weights" if found["held_out_chose_weights"] else ""
    said = [
        _beside(mixture, "a mixture of Gaussians", chose),
        _beside(found["independent"], "independent columns", chose),
    ]
    if not math.isfinite(mixture["value"]) or not math.isfinite(mixture["standard_error"]):
        said = ["the log density of held-out rows is not known: some have none under the model, or log Z is refuted"]
    said += _of_samples(found)
    if found["regions"]:
        said.append(f"not good: {found['regions'][0]}")
    if log_z["warning"]:
        said.append(f"log Z, and with it every log density, is in doubt: {log_z['warning']}")
    elif "averaged" not in model.record and abs(log_z["value"]) > _FAR_APART + 2.0 * log_z["standard_error"]:
        said.append(
            f"log Z is {log_z['value']:+.2f} where training alone implies 0: log densities here use the estimate, and "
            "implied_log_prob would be off by as much"
        )
    return [*said, *_remedies(found, model)]


def _beside(above: dict[str, float], what: str, chose: str) -> str:
    amount = f"{abs(above['value']):.3f} ± {above['standard_error']:.3f} nats a row"
    if above["value"] > 2.0 * above["standard_error"]:
        return f"good: held-out rows are likelier than under {what}, by {amount}{chose}"
    if above["value"] < -2.0 * above["standard_error"]:
        return f"not good: {what} describe{'s' if what.startswith('a ') else ''} held-out rows better, by {amount}"
    difference = f"{above['value']:+.3f} ± {above['standard_error']:.3f} nats a row"
    return f"held-out rows are about as likely as under {what} ({difference})"


def _of_samples(found: dict[str, Any]) -> list[str]:
    p_value, column, pair = found["energy_distance"]["p_value"], found["worst_column"], found["worst_pair"]
    rows = found["energy_distance"]["rows"][0]
    said = []
    if p_value >= _LIKE and rows < _FEW_HELD_OUT:
        said.append(f"{rows} held-out rows are too few to tell whether samples are like them (p = {p_value:.3f})")
    elif p_value >= _LIKE:
        said.append(f"good: the two-sample test can't tell samples from held-out rows (p = {p_value:.3f})")
    else:
        said.append(f"not good: samples differ from held-out rows (p = {p_value:.3f})")
    if column["p_value"] < _WORST:
        difference = f"{column['said']} (p = {column['p_value']:.2g})"
        said.append(f"not good: the worst column is {column['column']!r}: {difference}")
    if pair is not None and pair["p_value"] < _WORST:
        said.append(
            f"not good: the worst pair is {' and '.join(map(repr, pair['columns']))}: correlation of the transformed "
            f"columns {_correlations(pair['one'], pair['other'])}"
        )
    return said


def _correlations(one: float, other: float) -> str:
    """Say both with as many digits as tell them apart, four at most: near ±1 small differences count."""
    digits = next((n for n in (2, 3) if round(one, n) != round(other, n)), 4)
    return f"{one:+.{digits}f} in held-out rows, {other:+.{digits}f} in samples"


def _remedies(found: dict[str, Any], model: TableModel) -> list[str]:
    """Say what to try, if something is not good."""
    below = any(found[name]["value"] < -2.0 * found[name]["standard_error"] for name in ("mixture", "independent"))
    worst = [found[name]["p_value"] for name in ("worst_column", "worst_pair") if found[name] is not None]
    differ = found["energy_distance"]["p_value"] < _LIKE or min(worst) < _WORST
    if not (below or differ or found["regions"]):
        return []
    steps, stopped = len(model.curves.get("step", ())), str(model.record.get("stopped", ""))
    tries = []
    if stopped.startswith("worse"):
        tries.append("more rows: training stopped because held-out rows got worse")
    else:
        tries.append(
            f"more steps (steps={2 * steps}; --steps {2 * steps} goes on with a run)" if steps else "more steps"
        )
    if len(model.rows) < _FEW_ROWS:
        tries.append(f"fewer columns, since {len(model.rows)} rows say little about {len(model.columns)} at once")
    name = found["worst_column"]["column"]
    kind = model.transform.columns[model.columns.index(name)]
    if found["worst_column"]["p_value"] < _WORST and isinstance(kind, Numbers):
        tries.append(f"another transform of {name!r} (transforms=, --transform NAME=quantile)")
    return [f"try {', or '.join(tries)}"]
