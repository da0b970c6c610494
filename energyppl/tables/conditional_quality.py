"""Quality of predictions: held-out likelihood, coverage and errors beside those without the given columns."""

from typing import Any

import numpy as np
import torch

from energyppl._checks import checked
from energyppl._numerals import plain
from energyppl._seeds import seeded
from energyppl.errors import EnergyPPLError
from energyppl.inference.evaluation.coverage import coverage
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.model import Array
from energyppl.tables.quality import mean_and_error, mixture_log_density

__all__ = ["prediction_quality"]

_DRAWS, _BY_CHAINS = 199, 59  # of which the ranks 10 to 189, and 3 to 56, hold exactly nine tenths
_NOMINAL = 0.9
_FALSE_ALARM = 0.01  # of saying that intervals are off
_SPREADS = 16


@checked
def prediction_quality(model: ConditionalTableModel, *, seed: int = 0) -> dict[str, Any]:
    """Measure a model's predictions of its held-out rows, and say in words what is good and what is not.

    Args:
        model: that :func:`energyppl.tables.fit_conditional` trained.
        seed: of all that is random.

    Returns:
        ``log_density``, the mean over held-out rows in nats and the table's units, with its standard error;
        ``above``, by how much that is above a mixture of Gaussians of the targets' coordinates, which is not told the
        other columns (of one target of categories, above their shares of the training rows);
        ``held_out_chose_weights``, true of tables of fewer than 1000 rows, whose weights and
        temperature they chose: these figures are a little too good; ``rows`` and ``far``, how many there are and how
        many lie nowhere near the training rows; ``implied``, true if log Z is what training implies and not integrated;
        ``has_temperature``, true if held-out rows chose one of the energies;
        ``targets``, for each column of numbers ``coverage`` (``nominal``, ``observed``, and the ``lower`` and ``upper``
        end of its 95 % interval), ``rmse`` of its mean and ``rmse_of_constant``, of the training rows' mean, and for
        each column of categories ``right``, the share of rows whose commonest is the truth, and ``right_of_constant``;
        ``verdict``, sentences.

    Raises:
        EnergyPPLError: if there are fewer than two held-out rows, or their density is not a number.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(60, 2))
        >>> model = ep.tables.fit_conditional(x, "c0", steps=5, levels=3, progress=False)
        >>> sorted(ep.tables.prediction_quality(model)["targets"]["c0"])
        ['coverage', 'rmse', 'rmse_of_constant']
    """
    with seeded(seed):
        return _measured(model, seed)


def _measured(model: ConditionalTableModel, seed: int) -> dict[str, Any]:
    count, rows = len(model.targets), model.held_out
    if len(rows) < 2:
        raise EnergyPPLError("there are fewer than two held-out rows: nothing can be measured")
    frame, truth = model.table.frame(rows), rows[:, :count]
    own = model.log_prob(frame, seed=seed)
    drawn = model.central_draws(frame, _BY_CHAINS if model.by_chains else _DRAWS)
    context, outside = model.told(rows[:, count:])
    far = model.ebm.given_unchecked(context).is_far.cpu().numpy() | outside
    found: dict[str, Any] = {
        "log_density": mean_and_error(own),
        "above": mean_and_error(own - _without_others(model, truth, seed)),
        "held_out_chose_weights": model.validation is None,
        "rows": len(rows),
        "far": int(far.sum()),
        "implied": model.target.width > 1 and not model.of_categories,
        "has_temperature": model.target.width == 1,
        "targets": {name: _of_target(model, j, truth[:, j], drawn[..., j]) for j, name in enumerate(model.targets)},
    }
    return {**found, "verdict": _verdict(found)}


def _without_others(model: ConditionalTableModel, truth: Array, seed: int) -> Array:
    """Return the log density of targets ``(n, k)`` by a mixture of Gaussians of the training rows' coordinates.

    Of categories it is that of their shares of the training rows, one half counted in for each.
    """
    if model.of_categories:
        kinds = len(model.table.labels[0])
        counts = np.bincount(model.table.values[:, 0].astype(np.int64), minlength=kinds) + 0.5
        shares: Array = np.log(counts / counts.sum())[truth[:, 0].astype(np.int64)]
        return shares
    generator = torch.Generator().manual_seed(seed)
    training = model.target.encode(model.table.values[:, : truth.shape[1]], generator)[0]
    mixture = mixture_log_density(torch.as_tensor(training), [slice(None)])
    drawn = []
    for _ in range(_SPREADS if model.target.random else 1):
        z, weight = model.target.encode(truth, generator)
        drawn.append(mixture(torch.as_tensor(z)) + weight)
    total: Array = np.logaddexp.reduce(np.stack(drawn), 0) - np.log(len(drawn))
    return total


def _of_target(model: ConditionalTableModel, j: int, truth: Array, drawn: Array) -> dict[str, Any]:
    """Measure one target from its held-out values ``(n,)`` and draws ``(draws, n)``."""
    training = model.table.values[:, j]
    if model.is_category(j):
        values = np.arange(float(len(model.table.labels[j]) or 2))
        best = values[(drawn[..., None] == values).mean(0).argmax(1)]
        commonest = values[(training[:, None] == values).sum(0).argmax()]
        return {"right": float((best == truth).mean()), "right_of_constant": float((truth == commonest).mean())}
    held = coverage(torch.as_tensor(truth), torch.as_tensor(drawn.T.copy()), nominal=(_NOMINAL,))
    off, constant = drawn.mean(0) - truth, training.mean() - truth
    return {
        "coverage": {
            **{name: float(getattr(held, name)[0]) for name in ("nominal", "observed", "lower", "upper")},
            "problems": held.problems(_FALSE_ALARM),
        },
        "rmse": float(np.sqrt(np.square(off).mean())),
        "rmse_of_constant": float(np.sqrt(np.square(constant).mean())),
    }


# --- The verdict ---


def _verdict(found: dict[str, Any]) -> list[str]:
    above = found["above"]
    amount = f"{abs(above['value']):.3f} ± {above['standard_error']:.3f} nats a row"
    if above["value"] > 2.0 * above["standard_error"]:
        said = [f"good: told the other columns, held-out rows are likelier than without them, by {amount}"]
    elif above["value"] < -2.0 * above["standard_error"]:
        said = [
            f"not good: told the other columns, held-out rows are less likely than without them, by {amount}: try more "
            "rows, or more steps"
        ]
    elif np.isfinite(above["value"]):
        said = [
            f"the other columns make held-out rows about as likely as without them ({above['value']:+.3f} ± "
            f"{above['standard_error']:.3f} nats a row): they say little, or more rows or steps are needed"
        ]
    else:
        said = ["the log density of held-out rows is not finite: some are values that their column can't be"]
    for name, own in found["targets"].items():
        said += _of_category(name, own) if "right" in own else _of_numbers(name, own, found["rows"])
    if found["implied"]:
        said.append("log densities of several columns take log Z as training implies it, which is about right")
    if found["held_out_chose_weights"]:
        what = "weights and their temperature" if found["has_temperature"] else "weights"
        said.append(f"the held-out rows also chose the {what}: these figures are a little too good")
    if found["far"]:
        said.append(f"{found['far']} of {found['rows']} held-out rows lie nowhere near training rows: guesses there")
    return said


def _of_numbers(name: str, own: dict[str, Any], rows: int) -> list[str]:
    held = own["coverage"]
    observed = (
        f"{held['nominal']:.0%} intervals of {name} hold {held['observed']:.1%} of {rows} held-out rows (95 % interval "
        f"{held['lower']:.1%} to {held['upper']:.1%})"
    )
    side = "narrow, or off" if held["observed"] < held["nominal"] else "wide"
    better = "good" if own["rmse"] < own["rmse_of_constant"] else "not good"
    return [
        f"not good: {observed}: they are too {side}" if held["problems"] else f"good: {observed}",
        f"{better}: the predicted mean of {name} is off by {plain(own['rmse'])} (root mean square), a constant by "
        f"{plain(own['rmse_of_constant'])}",
    ]


def _of_category(name: str, own: dict[str, Any]) -> list[str]:
    better = "good" if own["right"] > own["right_of_constant"] else "not good"
    return [
        f"{better}: the commonest value of {name} is right in {own['right']:.1%} of held-out rows, the commonest of "
        f"all in {own['right_of_constant']:.1%}"
    ]
