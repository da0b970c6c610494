"""PyroKernel: the library's kernels inside ``pyro.infer.MCMC``."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from energyppl._checks import check_count, shape_text
from energyppl.autodiff.bound import BoundPotential, bind
from energyppl.autodiff.devices import beside
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.warmup import Tuned, warm_up
from energyppl.inference.kernels.contract import Info, Kernel, State, check_kernel, middle_step
from energyppl.inference.kernels.mass import MassEstimate, low_rank_mass
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.inference.sampling.targets import Target

__all__ = ["PyroKernel"]


class PyroKernel(MCMCKernel):
    """A kernel that ``pyro.infer.MCMC`` drives: ``MCMC(PyroKernel(NUTS(), model), num_samples=500)``.

    The kernel is tuned during Pyro's warm-up.  Each of Pyro's chains is ``chains`` of ours in one batch; with more than
    one, samples have shape ``(draws, chains, *shape)``, and cross-chain kernels such as ``ChEES`` can learn.

    Args:
        kernel: moves the chains.
        model: a Pyro model, whose arguments ``MCMC.run`` takes; or a potential or ``EnergyDistribution``, whose
            variable is called ``x``.
        chains: how many chains in the batch.
        mass: as in :func:`~energyppl.adapt`.

    Raises:
        InvalidInput: for less than one chain, or a kernel or a model of another kind.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> mcmc = pyro.infer.MCMC(ep.PyroKernel(ep.HMC(), model), num_samples=20, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["mu"].shape
        torch.Size([20])
    """

    transforms: Mapping[str, Any] = {}  # Pyro asks: samples are on their own supports already
    model = None
    potential_fn = None

    def __init__(self, kernel: Kernel, model: Any, *, chains: int = 1, mass: MassEstimate = low_rank_mass) -> None:
        check_count("chains", chains)
        check_kernel(kernel)
        if isinstance(model, type) or not callable(model):
            raise InvalidInput(f"model must be a Pyro model or an energy; got {type(model).__name__}: pass one")
        self.kernel = kernel
        self._given, self._model, self._chains, self._mass = kernel, model, chains, mass
        self._initial: Mapping[str, Tensor] | None = None
        self._forget()

    def _forget(self) -> None:
        self._target: Target | None = None
        self._potential: BoundPotential | None = None
        self._state: State | None = None
        self._info: Info | None = None
        self._warming: Iterator[Tuned] | None = None
        self._accepted = self._count = 0.0
        self._divergences: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a run holds only while it lasts: ``MCMC`` with its samples can be pickled after it."""
        return {**self.__dict__, "_target": None, "_potential": None, "_state": None, "_warming": None}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Find the model's sites and where chains begin; called by ``MCMC.run``."""
        self._forget()
        self.kernel = self._given
        self._target = Target.of(self._model, args, kwargs)
        x = self._target.start(self._chains) if self._initial is None else self._given_start(self._target)
        self._potential = bind(self._target.potential)
        self._state = self.kernel.init(self._potential, x)
        if warmup_steps:
            self._warming = warm_up(self.kernel, self._potential, x, warmup_steps, mass=self._mass)

    def _given_start(self, target: Target) -> Tensor:
        assert self._initial is not None
        if not isinstance(self._initial, Mapping):
            raise InvalidInput(f"initial_params must be a dictionary of sites; got {type(self._initial).__name__}")
        given = {n: v[None] if self._chains == 1 else v for n, v in map(_tensor, self._initial.items())}
        shape, potential = torch.Size((self._chains, *target.batch)), target.potential
        if isinstance(potential, ModelPotential):
            x = potential.join(given, shape)
        else:
            if set(given) != {"x"}:
                raise InvalidInput(
                    f"initial_params must be {{'x': …}} for a potential; got {', '.join(given) or 'none'}"
                )
            expected = (*shape, *potential.event_shape)
            if tuple(given["x"].shape) != expected:
                own = expected if self._chains > 1 else expected[1:]
                raise InvalidInput(
                    f"initial_params['x'] must have the unconstrained shape {shape_text(own)}; got "
                    f"{shape_text(self._initial['x'].shape)}"
                )
            x = beside(potential, given["x"])
        with torch.no_grad():
            legal = torch.isfinite(potential(x))
        if not bool(legal.any()):
            raise InvalidInput(
                "initial_params must be finite and inside the support; no chain starts at a finite energy"
            )
        return x

    def end_warmup(self) -> None:
        """Keep the kernel as it is from now on; called by ``MCMC.run``."""
        self._warming = None

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Return where the chain is, by site, on the sites' own supports.

        Set it to begin elsewhere, to unconstrained values as in Pyro (``MCMC(…, initial_params=…)`` does so).
        """
        if self._state is None or self._target is None:
            raise InvalidInput("the kernel has no target yet: MCMC.run sets it up")
        values = self._target.variables(self._state.x)
        return {name: value[0] if self._chains == 1 else value for name, value in values.items()}

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._initial = params

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the chains once; ``params`` must be what the last call returned, since the kernel keeps its state."""
        assert self._potential is not None
        assert self._state is not None
        tuned = next(self._warming, None) if self._warming is not None else None
        if tuned is not None:
            self.kernel, self._state, self._info = tuned
        else:
            self._state, self._info = self.kernel.step(self._potential, self._state)
            self._count += 1
            self._accepted += float(self._info.accept_prob.mean())
            if bool(self._info.diverging.any()):
                self._divergences.append(int(self._count) - 1)
        return self.initial_params

    def logging(self) -> "OrderedDict[str, str]":
        """Show the step size and acceptance on Pyro's progress bar."""
        accept = float(self._info.accept_prob.mean()) if self._info is not None else 0.0
        return OrderedDict([("step size", f"{middle_step(self.kernel):.2e}"), ("acc. prob", f"{accept:.3f}")])

    def diagnostics(self) -> dict[str, Any]:
        """Report divergent draws and the mean acceptance, as Pyro's own kernels do."""
        return {"divergences": self._divergences, "acceptance rate": self._accepted / max(1.0, self._count)}


def _tensor(item: tuple[str, Any]) -> tuple[str, Tensor]:
    name, value = item
    if not isinstance(value, Tensor):
        raise InvalidInput(f"initial_params[{name!r}] must be a tensor; got {type(value).__name__}")
    return name, value
