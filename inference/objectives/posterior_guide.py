"""Posterior chains as a Pyro guide: with it, plain ``SVI`` is MCMC-EM."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from energyppl._checks import check_count, check_flag, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import check_tunable
from energyppl.inference.sampling.plate_potential import PlatePotential
from energyppl.inference.sampling.run_chain import Trajectory, run_chain

__all__ = ["PosteriorGuide"]


class PosteriorGuide(nn.Module):
    """A guide whose draws are the ends of chains on each row's posterior, so that ``SVI`` is Monte Carlo EM.

    The model's latent sites lie in one plate of independent rows.  Each call moves a chain for every row from a draw of
    the model's prior, or of another guide, and returns where it ends, without a gradient and without a density of its
    own: what is left of the evidence bound is log p(x, z), whose gradient at posterior draws is that of log p(x) (Wei &
    Tanner 1990; for energy-based priors of latents, Pang et al. 2020, algorithm 1).  Its value is no bound.  The
    gradient is unbiased as far as the chains have arrived; with few steps it is that of short-run inference.

    Args:
        model: the Pyro model.
        kernel: moves the chains; ``MALA(0.1)`` if None.
        steps: moves of each chain at each call.
        start: another guide, called with the same arguments, where chains begin; a draw of the model's own prior sites
            if None.
        adapt: adapt the step size to the kernel's target acceptance from call to call.
        adaptation_rate: log step size moves by ``adaptation_rate * (acceptance − target)``.

    Raises:
        InvalidInput: for a kernel without one step size, or adaptation of one that never rejects.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> guide = ep.objectives.PosteriorGuide(model, ep.MALA(0.5), steps=20)
        >>> guide(torch.zeros(10))["z"].shape
        torch.Size([10])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        kernel: TunableKernel | None = None,
        *,
        steps: int = 20,
        start: Callable[..., Any] | None = None,
        adapt: bool = True,
        adaptation_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_flag("adapt", adapt)
        check_tunable(kernel, adapt=adapt)
        check_count("steps", steps)
        check_positive("adaptation_rate", adaptation_rate)
        for name, value in (("model", model), ("start", start)):
            if (value is not None or name == "model") and (isinstance(value, type) or not callable(value)):
                raise InvalidInput(f"{name} must be a Pyro program; got {value!r}: pass a function")
        self._programs: tuple[Any, Any] = (model, start)  # in a tuple, so that their weights are not the guide's
        self.steps, self.adapt, self.adaptation_rate = steps, adapt, adaptation_rate
        self.level_kernel = LevelKernel(MALA(0.1) if kernel is None else kernel, 1, torch.empty(()))
        self.last: Trajectory | None = None  # how the chains of the last call fared

    @property
    def step_size(self) -> float:
        """The kernel's step size as it is adapted so far."""
        return float(self.level_kernel.step_sizes[0])

    def draw(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the chains of all rows and return where they end, ``(n, *shape)`` by site."""
        return self._run(args, kwargs)[1]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run as a guide: with the model's arguments; returns the latent sites' values."""
        potential, values = self._run(args, kwargs)
        frame = potential.frame
        with pyro.plate(frame.name, frame.size, dim=frame.dim):
            for site in potential.sites:
                pyro.sample(site.name, dist.Delta(values[site.name], event_dim=len(site.shape)))
        return values

    def _run(self, args: Any, kwargs: Any) -> tuple[PlatePotential, dict[str, Tensor]]:
        model, guide = self._programs
        potential, start = PlatePotential.trace(model, args, kwargs)
        if guide is not None:
            with torch.no_grad(), poutine.block():
                nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
            start = {name: nodes[name]["value"].detach() for name in start if name in nodes}
        z = potential.join(start)
        level = torch.zeros(len(z), dtype=torch.long, device=z.device)
        self.last = run_chain(self.level_kernel.to(z).at(level), potential, z, self.steps)
        if self.adapt:
            self.level_kernel.adapt(self.last.accept_prob, level, self.adaptation_rate)
        return potential, potential.split(self.last.state.x)
