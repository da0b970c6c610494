"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2025)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from energyppl.autodiff.private import Optimizer
from energyppl.errors import InvalidInput

__all__ = ["SOAP"]

_LARGEST = 1024  # rows or columns of a matrix, beyond which its eigenvectors cost more than they save
_LOPSIDED = 10  # times as many rows as columns, or columns as rows: likewise of the longer side
_SIDES = ("left", "right")
_EXACT = (torch.float32, torch.float64)  # whose eigenvectors torch computes


class SOAP(Optimizer):
    """Adam in the eigenbasis of each weight matrix's gradients (Vyas et al. 2025, algorithm 3), with decoupled decay.

    The averages of G Gᵀ and Gᵀ G of a matrix's gradients G (Shampoo; Gupta, Koren & Singer 2018) have eigenvectors
    along which the loss is steep or flat; Adam scales its steps along those, in place of along single weights.  The
    eigenvectors are followed by a step of orthogonal iteration every few updates.  A convolution's kernel is a matrix
    whose rows are its outputs.  Of more than 1,024 rows or columns, or more than ten times as many as of the other
    kind, no eigenvectors are computed: steps are scaled along the other side's alone.  Vectors are updated by Adam.

    Args:
        params: as torch's optimizers take them.
        lr: learning rate; three times Adam's is a good one.
        betas: decay of the averages of gradients and of their squares.
        preconditioner_beta: decay of the averages of G Gᵀ and Gᵀ G.
        eps: added to the root of the squares' average.
        weight_decay: each update shrinks weights by this times the learning rate.
        every: updates between two steps of the eigenvectors.

    Raises:
        InvalidInput: for a rate or eps that is not positive, decays outside [0, 1), or less than one update.

    Example:
        >>> from functools import partial
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> make = partial(ep.inference.training.SOAP, lr=0.01)
        >>> history = ep.fit(ebm, torch.randn(100, 2), optimizer=make, steps=3, progress=False)
        >>> len(history.records)
        3
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        preconditioner_beta: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = 10,
    ) -> None:
        if not (lr > 0.0 and eps > 0.0 and weight_decay >= 0.0 and every >= 1):
            raise InvalidInput(
                "lr and eps must be positive, weight_decay not negative and every at least 1; got "
                f"lr={lr}, eps={eps}, weight_decay={weight_decay}, every={every}"
            )
        if not all(0.0 <= beta < 1.0 for beta in (*betas, preconditioner_beta)):
            raise InvalidInput(f"decays must lie in [0, 1); got betas={betas}, {preconditioner_beta=}")
        settings = {"lr": lr, "betas": betas, "preconditioner_beta": preconditioner_beta, "eps": eps}
        super().__init__(params, {**settings, "weight_decay": weight_decay, "every": every})

    @staticmethod
    def shapes(weight: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that is kept for a weight, by name."""
        shape = tuple(_matrix(weight).shape)
        kept: dict[str, tuple[int, ...]] = {"step": ()} | dict.fromkeys(("exp_avg", "exp_avg_sq"), shape)
        if len(shape) > 1 and min(shape) > 1 and weight.dtype in _EXACT:
            for side, size in zip(_SIDES, shape, strict=True):
                if size <= min(_LARGEST, _LOPSIDED * min(shape)):
                    kept |= {side: (size, size), f"{side}_basis": (size, size)}
        return kept

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a loss here is evaluated once
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        kept, grad = self.state[weight], _matrix(grad)
        if not kept:
            kept |= {name: weight.new_zeros(shape) for name, shape in self.shapes(weight).items()}
            kept["step"] = kept["step"].float()  # bfloat16 counts to 256
            _follow(kept, grad, 0.0)
            for side in _SIDES:
                if side in kept:
                    kept[f"{side}_basis"] = torch.linalg.eigh(kept[side]).eigenvectors.flip(1).contiguous()
        kept["step"] += 1
        count, (beta, beta_sq) = int(kept["step"]), group["betas"]
        kept["exp_avg"].lerp_(grad, 1.0 - beta)
        along = _rotated(kept, grad)
        kept["exp_avg_sq"].mul_(beta_sq).addcmul_(along, along, value=1.0 - beta_sq)
        width = (kept["exp_avg_sq"] / (1.0 - beta_sq**count)).sqrt_().add_(group["eps"])
        move = _rotated_back(kept, _rotated(kept, kept["exp_avg"]) / width)
        weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight.add_(move.reshape(weight.shape), alpha=-group["lr"] / (1.0 - beta**count))
        _follow(kept, grad, group["preconditioner_beta"])
        if count % group["every"] == 0:
            _turn(kept)


def _matrix(weight: Tensor) -> Tensor:
    """Return a kernel as a matrix, a row for each output; matrices and vectors as they are."""
    return weight.flatten(1) if weight.dim() > 2 else weight


def _follow(kept: dict[str, Tensor], grad: Tensor, beta: float) -> None:
    """Average the products of a matrix's gradients."""
    if "left" in kept:
        kept["left"].addmm_(grad, grad.T, beta=beta, alpha=1.0 - beta)
    if "right" in kept:
        kept["right"].addmm_(grad.T, grad, beta=beta, alpha=1.0 - beta)


def _rotated(kept: dict[str, Tensor], grad: Tensor) -> Tensor:
    grad = kept["left_basis"].T @ grad if "left" in kept else grad
    return grad @ kept["right_basis"] if "right" in kept else grad


def _rotated_back(kept: dict[str, Tensor], grad: Tensor) -> Tensor:
    grad = kept["left_basis"] @ grad if "left" in kept else grad
    return grad @ kept["right_basis"].T if "right" in kept else grad


def _turn(kept: dict[str, Tensor]) -> None:
    """Move the eigenvectors by a step of orthogonal iteration, the steepest first, and sort the squares likewise."""
    for dim, side in enumerate(_SIDES):
        if side in kept:
            products, basis = kept[side], kept[f"{side}_basis"]
            order = (basis * (products @ basis)).sum(0).argsort(descending=True)
            kept["exp_avg_sq"] = kept["exp_avg_sq"].index_select(dim, order)
            kept[f"{side}_basis"] = torch.linalg.qr(products @ basis[:, order]).Q.contiguous()
