"""Multi-scale denoising score matching: one energy for many noise levels, and annealed Langevin by temperature.

MDSM (Li, Chen & Sommer, "Learning energy-based models in high-dimensional spaces with multi-scale denoising score
matching", arXiv:1910.07762; Entropy 25, 2023) trains an energy that is not told how noisy a point is.  The field that
minimizes its loss over noise levels q(σ) is ``∇U = −∇A / (σ0² B)``, with ``A = Σ q(σ) p_σ`` and
``B = Σ q(σ) p_σ / σ²``.  In high dimension a point shows its own σ, and then ``∇U = (σ²/σ0²) (−∇ log p_σ)``: at the
temperature T = σ²/σ0² the samples of U are the noised data p_σ.  In low dimension it doesn't; the field is in general
no gradient, and U not −log p.  The numbers called the paper's are those of its released code (zengyi-li/MDSM).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import append_dims
from energyppl.autodiff.gradient import gradient_only
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.objectives.contract import Loss
from energyppl.inference.objectives.held_out import MEASURE_SEED
from energyppl.inference.objectives.level_allocation import stratified_levels
from energyppl.inference.objectives.second_order import check_second_order, differentiable_score

__all__ = ["MultiscaleScoreMatching"]


class _Levels(nn.Module):
    """The state: the model's noise levels, in standardized coordinates."""

    sigmas: Tensor  # (levels,), decreasing

    def __init__(self, sigmas: Tensor, base_sigma: float) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas.detach().clone())
        self.base_sigma = base_sigma


@dataclass(frozen=True)
class MultiscaleScoreMatching:
    """Multi-scale denoising score matching (MDSM, Li et al. 2019): no sampling, one double backward an update.

    The loss is ``mean |x − x̃ + σ0² ∇U(x̃)|² / σ²`` over coordinates and rows, x̃ = x + σ ε, each row at its own level of
    the model's noise levels: the paper's loss, times σ0⁴ and per coordinate.  It is 1 for a constant energy.  It has no
    share of log-likelihood: see :class:`~energyppl.MultiscaleEBM` for what its energy is and what it isn't.

    Example:
        >>> ebm = ep.MultiscaleEBM(ep.MLPEnergy((2,), levels=1), sigmas=[4.0, 2.0, 1.0, 0.5], base_sigma=1.0)
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.objectives.MultiscaleScoreMatching()
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    def init(self, model: Any) -> _Levels:
        """Take the noise levels of the model, which must have some.

        Raises:
            InvalidInput: for any other, and if the network can't be differentiated twice; the message names the layer.
        """
        if not isinstance(getattr(model, "sigmas", None), Tensor):
            raise InvalidInput(
                f"multi-scale score matching needs a sequence of noise levels, as a MultiscaleEBM has; got "
                f"{type(model).__name__}: for one energy use DenoisingScoreMatching, for a schedule LevelScoreMatching"
            )
        check_second_order(model, lambda model: model.potential())
        return _Levels(model.sigmas, float(model.base_sigma))

    def loss(self, model: EnergyModel, state: _Levels, batch: Tensor) -> Loss:
        """Return the loss of ``batch``, ``(n, *event)``."""
        clean = model.to_unit(batch)
        sigma = _row_sigmas(state, clean, float(torch.rand(())))
        noisy = clean + sigma * torch.randn_like(clean)
        score = differentiable_score(model.potential(), noisy)
        value = _denoising_error(state, clean, noisy, sigma, score)
        return Loss(value, {"denoising": float(value.detach())})

    def measure(self, model: EnergyModel, state: _Levels, data: Tensor) -> float:
        """Return the loss of ``data``, ``(n, *event)``, with noise that is the same at every call."""
        clean = model.to_unit(data)
        sigma = _row_sigmas(state, clean, 0.5)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(MEASURE_SEED)).to(clean)
        noisy = clean + sigma * noise
        score = gradient_only(model.potential(), noisy)
        return float(_denoising_error(state, clean, noisy, sigma, score))


def _row_sigmas(state: _Levels, rows: Tensor, offset: float) -> Tensor:
    sigma = state.sigmas.to(rows)[stratified_levels(len(rows), len(state.sigmas), offset).to(rows.device)]
    return append_dims(sigma, rows)


def _denoising_error(state: _Levels, clean: Tensor, noisy: Tensor, sigma: Tensor, score: Tensor) -> Tensor:
    return ((clean - noisy + state.base_sigma**2 * score) / sigma).square().mean()
