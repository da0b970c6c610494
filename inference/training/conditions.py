"""Conditions of a model in training: the class or context of each row."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.errors import QuadratureError
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.objectives.contract import Objective
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.inference.training._checks import is_conditional
from energyppl.inference.training.options import TrainingOptions
from energyppl.integration.batched import likeliest_power

__all__ = ["Conditions"]

_HIDDEN_LABELS = 0.1
_FEWEST_ROWS, _MOST_ROWS = 30, 1024  # held-out rows that a temperature is found from


class Conditions:
    """Classes or contexts of rows, some of which are hidden so that the energy without them is learned too.

    Args:
        model: that is trained.
        options: which say how many are hidden.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions) -> None:
        self._model: Any = model
        self._conditional = is_conditional(model)
        usual = 0.0 if self._conditional else _HIDDEN_LABELS
        self._dropped = usual if options.label_drop is None else options.label_drop

    def prepare(self, rows: Tensor, contexts: Tensor | None, objective: Objective) -> None:
        """Give the model its coordinates, and one of contexts what its training does: hides some, ties the levels."""
        model = self._model
        fresh = hasattr(model, "standardize") and not bool(model.is_standardized)
        if fresh and self._conditional:
            model.standardize_context(contexts)
        if fresh:
            model.standardize(rows)
        if not self._conditional:
            return
        if self._dropped > 0.0:
            model.trained_without.fill_(True)
        model.inverse_temperature.fill_(1.0)
        ties = getattr(objective, "ties_levels", None)
        model.tied.fill_(ties is not None and ties(model))

    def given(self, contexts: Tensor | None) -> Any:
        """Return the model given each row's context; one without contexts as it is."""
        return self._model.conditioned(contexts) if self._conditional else self._model

    def in_training(self, rows: Tensor, beside: Tensor | None) -> Any:
        """Return the model given the rows' classes or contexts, some of them hidden."""
        if beside is None:
            return self._model
        if self._conditional:
            hide = self._dropped > 0.0 and float(torch.rand(())) < self._dropped
            return self._model.conditioned(None if hide else beside)
        hidden = torch.rand(len(rows), device=rows.device) < self._dropped
        return self._model.given(torch.where(hidden, self._model.net.classes, beside))

    def settle(self, rows: Tensor, contexts: Tensor | None) -> None:
        """Give energies of one number the temperature at which held-out rows are likeliest.

        Few training rows leave densities too narrow; one number for all contexts mends that (as in Guo et al. 2017),
        and log Z, which is integrated, follows it.  It stays 1 where few rows are held out.
        """
        model = self._model
        if contexts is None or model.event_shape != (1,) or len(rows) < _FEWEST_ROWS:
            return
        model.inverse_temperature.fill_(1.0)
        given, clean = model.conditioned(contexts[:_MOST_ROWS]), model.to_unit(rows[:_MOST_ROWS])
        with fixed_noise():
            noisy = model.schedule.diffuse(clean, 0)
        with suppress(QuadratureError):  # of energies that are no numbers, which each density says by itself
            found = likeliest_power(lambda points, some: model_of_rows(given, some).potential(0)(points), noisy)
            model.inverse_temperature.fill_(found)
