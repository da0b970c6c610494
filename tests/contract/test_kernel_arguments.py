"""Arguments of kernels are checked by the library's own sentences, whatever comes; distributions are no potentials."""

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import energyppl as ep
from energyppl.errors import InvalidInput
from tests.support.chains import NORMAL

K = ep.kernels
HALF = torch.tensor([True, False])
# constructor by argument: what it must be, and what else comes
WRONG: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...], str]] = {
    **{
        f"{name}.step_size": (
            make,
            ("x", None, [0.1], True, 0.0, -1.0, math.nan, math.inf, torch.ones(2) > 0),
            "positive",
        )
        for name, make in {
            "Langevin": ep.Langevin,
            "MALA": ep.MALA,
            "HMC": ep.HMC,
            "ChEES": ep.ChEES,
            "NUTS": ep.NUTS,
            "MALT": K.MALT,
            "CrankNicolson": K.CrankNicolson,
            "CrankNicolsonLangevin": K.CrankNicolsonLangevin,
            "DiscreteLangevin": K.DiscreteLangevin,
        }.items()
    },
    "Crank-Nicolson's limit": (K.CrankNicolson, (1.5, torch.tensor([0.5, 2.0])), r"must lie in \(0, 1\]"),
    "reference_scale": (lambda v: K.CrankNicolson(reference_scale=v), ("x", None, True, -1.0, math.nan), "positive"),
    "HMC.steps": (lambda v: ep.HMC(steps=v), ("x", None, 1.5, True, 0, -1), "steps must be a whole number"),
    "HMC.jitter": (lambda v: ep.HMC(jitter=v), ("x", None, True, -0.1, 1.0, math.nan), r"jitter must lie in \[0, 1\)"),
    "HMC.inverse_mass": (lambda v: ep.HMC(inverse_mass=v), ("x", 1.0, [1.0], -torch.ones(2)), "inverse_mass must be"),
    "HMC.force_dtype": (lambda v: ep.HMC(force_dtype=v), ("x", 16, torch.float64), "force_dtype must be None"),
    "ChEES.length": (lambda v: ep.ChEES(length=v), ("x", None, True, 0.0, -1.0, math.nan), "length must be positive"),
    "ChEES.max_steps": (lambda v: ep.ChEES(max_steps=v), ("x", None, 1.5, 0), "max_steps must be a whole number"),
    "MALT.friction": (
        lambda v: K.MALT(friction=v),
        ("x", None, True, [1.0], -1.0, math.nan, math.inf),
        "friction must be",
    ),
    "NUTS.max_depth": (lambda v: ep.NUTS(max_depth=v), ("x", None, 2.5, True, 0), "max_depth must be a whole number"),
    "BinaryGibbs.updates": (K.BinaryGibbs, ("x", None, 1.5, True, 0), "updates must be a whole number"),
    "IndependentMetropolis.proposal": (
        K.IndependentMetropolis,
        ("x", None, 1.0, dist.Normal),
        "must be a distribution",
    ),
    "Cycle": (K.Cycle, ("x", None, 1.0, ep.HMC, [ep.HMC()]), "a kernel of Cycle must have init and step"),
    "Mixture": (K.Mixture, ("x", None, 1.0, ep.HMC), "a kernel of Mixture must have init and step"),
    "Mixture.weights": (
        lambda v: K.Mixture(ep.HMC(), ep.NUTS(), weights=v),
        ("xy", 1.0, (1.0,), (1.0, None), (1.0, "x"), (1.0, -1.0), (1.0, math.nan), (True, True)),
        "weight",
    ),
    "Block.kernel": (lambda v: K.Block(v, HALF), ("x", None, ep.HMC), "a kernel of Block must have init and step"),
    "Block.free": (lambda v: K.Block(ep.HMC(), v), ("x", None, [True], torch.ones(2), ~HALF & HALF), "free must be"),
    "Tempered.kernel": (K.Tempered, ("x", None, ep.HMC), "the kernel of a Tempered must have init and step"),
    "Tempered.betas": (
        lambda v: K.Tempered(ep.HMC(), v),
        ("x", None, 1.0, (1.0,), (1.0, None), (1.0, "x"), (0.5, 1.0), (1.0, -0.5), (1.0, math.nan)),
        "betas must begin at 1 and fall",
    ),
    "Tempered.base": (
        lambda v: K.Tempered(ep.HMC(), base=v),
        ("x", 1.0, dist.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 1.0)),
        "the base of a Tempered must be a potential",
    ),
    "LowRankMass": (
        lambda v: K.LowRankMass(v, torch.ones(1, 1), torch.ones(1)),
        ("x", None, 1.0, -torch.ones(1)),
        "variance must be",
    ),
    "MarkovSampler.kernel": (lambda v: ep.sampling.MarkovSampler(v, 3), ("x", None), "kernel must have init and step"),
    "MarkovSampler.steps": (lambda v: ep.sampling.MarkovSampler(ep.HMC(), v), ("x", None, 0, 1.5), "steps must be"),
    "MarkovSampler.start_scale": (
        lambda v: ep.sampling.MarkovSampler(ep.HMC(), 3, v),
        ("x", None, 0.0, math.nan, True),
        "start_scale must be positive",
    ),
}


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, row in WRONG.items() for i in range(len(row[1]))])
def test_wrong_arguments_are_named(name: str, index: int) -> None:
    make, values, message = WRONG[name]
    with pytest.raises(InvalidInput, match=message) as caught:
        make(values[index])
    assert len(str(caught.value).splitlines()) <= 2  # of a tensor's text


NORMALS: dict[str, Any] = {
    "Pyro's": dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "torch's": torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1),
    "an EnergyDistribution": ep.EnergyDistribution(NORMAL),
}
X = torch.zeros(4, 2)
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "adapt": lambda d: ep.adapt(ep.HMC(), d, X, 2),
    "run_chain": lambda d: ep.sampling.run_chain(ep.HMC(), d, X, 2),
    "Scaled": lambda d: ep.potentials.Scaled(d, 2.0),
    "Sum": lambda d: ep.potentials.Sum(NORMAL, d),
    "Tempered": lambda d: K.Tempered(ep.HMC(), base=d),
}


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize("name", list(NORMALS))
def test_a_distribution_is_no_potential(name: str, entry: str) -> None:
    """Pyro's distributions can be called and have an event_shape; what a call gives is a draw, not an energy."""
    kind = type(NORMALS[name]).__name__
    way = "its .unconstrained()" if kind == "EnergyDistribution" else "potentials.DistributionBase(distribution)"
    message = f"must be a potential; got {kind}, which draws when it is called: pass {way}"
    with pytest.raises(InvalidInput, match=re.escape(message)):
        ENTRIES[entry](NORMALS[name])


def model(y: Any, sigma: Any = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, sigma), obs=y)


OLD: dict[str, tuple[Callable[[], Any], str]] = {
    "one argument as it is": (
        lambda: ep.sample_chains(ep.HMC(), model, torch.tensor(0.5), progress=False),  # type: ignore[arg-type]
        "args must be a tuple of the Pyro model's arguments; got Tensor: write sample_chains(kernel, model, (x, y))",
    ),
    "two arguments as they are": (
        lambda: ep.sample_chains(ep.HMC(), model, (torch.tensor(0.5),), 1.0, progress=False),  # type: ignore[arg-type]
        "kwargs must be a dictionary of the Pyro model's named arguments; got float",
    ),
    "a string": (lambda: ep.sample_chains(ep.HMC(), model, "y", progress=False), "args must be a tuple"),
    "too few": (lambda: ep.sample_chains(ep.HMC(), model, progress=False), "can't be called with these arguments"),
    "unknown": (
        lambda: ep.sample_chains(ep.HMC(), model, (torch.tensor(0.5),), {"scale": 1.0}, progress=False),
        "can't be called with these arguments",
    ),
}


@pytest.mark.parametrize("name", list(OLD))
def test_arguments_of_models_go_into_one_tuple(name: str) -> None:
    make, message = OLD[name]
    with pytest.raises(InvalidInput, match=re.escape(message)):
        make()
