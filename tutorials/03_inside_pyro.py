# %% [markdown]
# # Inside Pyro: any model on many chains, and energies as parts of models
#
# Two roads meet here.  Every Pyro model is an energy of its unconstrained latent values, so the chains of tutorial 02
# run on it as it is.  And every energy is a Pyro distribution, so a learned one can be the prior of a Bayesian model.
#
# It takes about two minutes on one core; smaller numbers in the first cell make it shorter.

# %%
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl import plots

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 whenever it is imported
    import arviz as az

DRAWS = 200  # of each chain
STEPS = 400  # updates of training
CHAINS = 1000  # of the Pyro model
pyro.set_rng_seed(0)
torch.set_num_threads(1)
# sample_chains also warns of what chains.problems() lists.  Here it is printed where it belongs in the text.
warnings.simplefilter("ignore", ep.errors.ChainWarning)


def rounded(values: Tensor, digits: int = 3) -> list[float]:
    return [round(float(value), digits) for value in values]


def moments(points: Tensor) -> str:
    return f"means {rounded(points.mean(0))}, standard deviations {rounded(points.std(0))}"


# %% [markdown]
# ## Eight schools on a thousand chains
#
# The model is ordinary Pyro.  `sample_chains` runs it once to find its latent sites, lays them out as a vector (with
# each support's own map from real numbers, so `tau` stays positive) and batches it over chains with `torch.func.vmap`.


# %%
def eight_schools(sigma: Tensor, effect: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("effect", dist.Normal(theta, sigma), obs=effect)


sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
effect = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
schools = ep.sample_chains(
    ep.ChEES(), eight_schools, (sigma, effect), chains=CHAINS, draws=DRAWS, warmup=200, progress=False
)
columns = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]
summary = az.summary(schools.to_arviz(), var_names=["mu", "tau", "theta"], round_to="none")[columns]
print(
    f"{CHAINS} chains of {DRAWS} draws: {schools.warmup_seconds:.1f} s of warm-up, {schools.seconds:.1f} s "
    f"of sampling, {schools.gradients / DRAWS:.1f} gradients a draw; smallest bulk ESS "
    f"{summary['ess_bulk'].min():.0f}, worst R-hat {summary['r_hat'].max():.3f}"
)
print(summary.round(2))
print("not to be trusted:", schools.problems() or "nothing noticed")

# %% [markdown]
# Does the model describe the data?  A posterior predictive check draws the observed site anew for each draw of the
# posterior.  ArviZ gets both, and draws one above the other by `az.plot_ppc(checked)` (`plot_ppc_dist` from 1.0 on);
# here is how many of the observed effects lie in the intervals of their own draws.

# %%
checked = schools.to_arviz(posterior_predictive=True)
anew = torch.as_tensor(checked.posterior_predictive["effect"].values).flatten(0, 1)  # (draws, schools)
print(ep.evaluation.coverage(effect, anew.T, nominal=(0.5, 0.9)))

# %% [markdown]
# ## Our kernels in Pyro's MCMC
#
# `PyroKernel` goes where Pyro's own kernels go.  `num_samples`, `warmup_steps`, `get_samples` and `Predictive` work as
# always; with `chains=16` there are sixteen chains in each of Pyro's, and the draws have one dimension more.

# %%
number = max(20, DRAWS // 2)
runs = {
    "Pyro's NUTS": NUTS(eight_schools),
    "PyroKernel(NUTS())": ep.PyroKernel(ep.NUTS(), eight_schools),
    "PyroKernel(ChEES(), chains=16)": ep.PyroKernel(ep.ChEES(), eight_schools, chains=16),
}
for name, kernel in runs.items():
    began = time.perf_counter()
    mcmc = MCMC(kernel, num_samples=number, warmup_steps=number, disable_progbar=True)
    mcmc.run(sigma, effect)
    mu = mcmc.get_samples()["mu"]
    print(f"{name}: mu {mu.mean():.2f} ± {mu.std():.2f}, {mu.numel()} draws in {time.perf_counter() - began:.1f} s")

# %% [markdown]
# ## A learned energy as a prior: denoising
#
# An energy-based model of two moons, trained for a short while.  `ebm.marginal()` is a Pyro distribution.  Inside MCMC
# its normalizing constant cancels; `unnormalized()` states that it is left out.

# %%
toy = ep.toys.TwoMoons()
ebm = ep.RecoveryEBM(ep.MLPEnergy(event_shape=(2,)), ep.NoiseSchedule.cosine(levels=6))
options = ep.TrainingOptions(steps=STEPS, evaluate_every=min(100, STEPS))
print(ep.fit(ebm, toy.sample((20_000,)), options=options, progress=False))
prior = ebm.marginal().unnormalized()


def denoise(noisy: Tensor) -> None:
    with pyro.plate("points", len(noisy)):
        clean = pyro.sample("clean", prior)
        pyro.sample("noisy", dist.Normal(clean, 0.4).to_event(1), obs=noisy)


# %% [markdown]
# In two dimensions the posterior can be had by brute force: the energy plus the misfit, on a grid.


# %%
axis = torch.linspace(-2.0, 3.0, 251)
grid = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    grid_energy = prior.energy(grid)


def by_quadrature(misfit: Tensor) -> Tensor:
    """Masses of the grid's points ``(n,)`` under the prior's energy and a misfit ``(n,)`` in nats."""
    return torch.softmax(-(grid_energy + misfit).double(), 0)


def grid_moments(mass: Tensor) -> str:
    mean = mass @ grid.double()
    return f"means {rounded(mean)}, standard deviations {rounded((mass @ (grid.double() - mean).square()).sqrt())}"


def draws_from(mass: Tensor) -> Tensor:
    """Points of the grid in proportion to their mass, spread over their cells, ``(2000, 2)``."""
    index = torch.multinomial(mass, 2_000, replacement=True)
    return grid[index] + (torch.rand(2_000, 2) - 0.5) * (axis[1] - axis[0])


def share_apart(points: Tensor, mass: Tensor) -> float:
    """Half the difference in absolute value of the draws' and the grid's shares of 10 x 10 squares."""
    edges = [torch.linspace(-2.0, 3.0, 11, dtype=torch.float64)] * 2
    drawn = torch.histogramdd(points.double().reshape(-1, 2), bins=edges).hist
    exact = torch.histogramdd(grid.double(), bins=edges, weight=mass).hist
    return 0.5 * float((drawn / drawn.sum() - exact).abs().sum())


# Each of the rows is a problem of its own; the chains move all of them together.  They begin at draws of the prior:
# Pyro's usual starts, uniform within ±2, may put chains into a dent of the energy where no data are.
noisy = torch.tensor([[0.5, 0.6], [-0.6, 0.2], [1.5, -0.7]])
number_of_chains = min(256, CHAINS)
posterior = ep.sample_chains(
    ep.ChEES(),
    denoise,
    (noisy,),
    chains=number_of_chains,
    draws=DRAWS,
    warmup=300,
    init={"clean": prior.sample((number_of_chains, len(noisy)))},
    progress=False,
)
clean = posterior.samples["clean"]  # (chains, draws, 3, 2)
for i, row in enumerate(noisy):
    mass = by_quadrature(0.5 * ((grid - row) / 0.4).square().sum(1))
    ours = clean[:, :, i].flatten(0, 1)
    print(f"noisy point {rounded(row)}: {share_apart(ours, mass):.1%} of the mass lies elsewhere than on the grid")
    print(f"  grid    {grid_moments(mass)}\n  chains  {moments(ours)}")
r_hat = float(az.summary(posterior.to_arviz(), round_to="none")["r_hat"].max())
print(f"worst R-hat {r_hat:.3f}; not to be trusted:", posterior.problems() or "nothing noticed")

# %% [markdown]
# ## The same model, other inference
#
# Nothing above knows that the prior is an energy: it is an ordinary site.  So Pyro's own NUTS runs on the same model,
# and so does variational inference.  The true posterior bends, and lies on both moons: one chain that follows gradients
# stays on the moon where it began, and `AutoNormal` can only be a single bell with upright axes.


# %%
def denoise_one(row: Tensor) -> None:
    clean = pyro.sample("clean", prior)
    pyro.sample("noisy", dist.Normal(clean, 0.4).to_event(1), obs=row)


row = noisy[1]
mass = by_quadrature(0.5 * ((grid - row) / 0.4).square().sum(1))
clouds = {"chains (ChEES)": clean[:, :, 1].flatten(0, 1)}

mcmc = MCMC(NUTS(denoise_one), num_samples=2 * number, warmup_steps=number, disable_progbar=True)
mcmc.run(row)
clouds["Pyro's NUTS"] = mcmc.get_samples()["clean"]

pyro.clear_param_store()
guide = AutoNormal(denoise_one, init_loc_fn=init_to_value(values={"clean": row}), init_scale=0.2)
svi = SVI(denoise_one, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(16, 1, vectorize_particles=True))
losses = [svi.step(row) for _ in range(max(20, 2 * DRAWS))]
with torch.no_grad():
    clouds["SVI, AutoNormal"] = torch.stack([guide(row)["clean"] for _ in range(500)])
plots.show(
    plots.training_curves({"−ELBO, nats": (torch.arange(len(losses)), torch.tensor(losses))}, title="SVI"), "03_svi"
)
print(f"grid: {grid_moments(mass)}")
for name, cloud in clouds.items():
    print(f"{name}: {moments(cloud)}; {share_apart(cloud, mass):.1%} of the mass elsewhere")
shown = {name: cloud[torch.randperm(len(cloud))[:2_000]] for name, cloud in clouds.items()}
plots.show(
    plots.scatter_panels(
        {"grid": draws_from(mass), **shown}, title="What (−0.6, 0.2) was before its noise", extent=(-2, 1, -1, 2)
    ),
    "03_denoising",
)

# %% [markdown]
# ## Deblurring
#
# Now a point is not seen at all, only a mixture of its coordinates, with noise: fewer numbers than unknowns, and the
# prior must fill in what is lost.  The posterior has a piece wherever the line crosses a moon, and chains that follow
# gradients don't cross between pieces.  `Tempered` does, on Pyro models as on any potential.

# %%
blur = torch.tensor([0.8, 0.6])


def deblur(seen: Tensor) -> None:
    sharp = pyro.sample("sharp", prior)
    pyro.sample("seen", dist.Normal((sharp * blur).sum(-1), 0.1), obs=seen)


seen = torch.tensor(0.5)
mass = by_quadrature(0.5 * ((grid @ blur - seen) / 0.1).square())
clouds = {}
for name, kernel in {
    "ChEES": ep.ChEES(),
    "Tempered": ep.kernels.Tempered(ep.HMC(steps=5), betas=(1.0, 0.5, 0.2, 0.08)),
}.items():
    found = ep.sample_chains(kernel, deblur, (seen,), chains=64, draws=2 * DRAWS, warmup=200, progress=False)
    clouds[name] = found.flat()["sharp"]
    r_hat = float(az.summary(found.to_arviz(), round_to="none")["r_hat"].max())
    print(f"{name}: worst R-hat {r_hat:.3f}, {share_apart(clouds[name], mass):.1%} of the mass elsewhere")
shown = {name: cloud[torch.randperm(len(cloud))[:2_000]] for name, cloud in clouds.items()}
box = (-2.0, 3.0, -1.5, 2.0)
plots.show(
    plots.scatter_panels(
        {"grid": draws_from(mass), **shown}, title="A point of which 0.8 x₁ + 0.6 x₂ was seen", extent=box
    ),
    "03_deblurring",
)
density = torch.softmax(-grid_energy.double(), 0)
images = [values.reshape(len(axis), -1).T / (axis[1] - axis[0]) ** 2 for values in (density, mass)]
plots.show(
    plots.density_grid(
        {"density": images},
        ["the prior, a learned energy", "the posterior, on a grid"],
        extent=(-2.0, 3.0, -2.0, 3.0),
        title="Deblurring",
    ),
    "03_posterior",
)

# %% [markdown]
# ## Energies on constrained supports
#
# An `EnergyDistribution` takes a `support`: chains run on unconstrained numbers and hand back points inside it.  Here
# is a Dirichlet density written as an energy on the simplex, whose means are known, and the same energy in a model.

# %%
weights = torch.tensor([4.0, 2.0, 1.5])
shares = ep.EnergyDistribution(
    ep.Energy(lambda x: -((weights - 1.0) * x.log()).sum(-1), (3,)), support=constraints.simplex
)
found = ep.sample_chains(ep.ChEES(), shares, draws=DRAWS, warmup=200, progress=False)
x = found.samples["x"].flatten(0, 1)
print("simplex: means", rounded(x.mean(0)), "exact", rounded(weights / weights.sum()))


def count(votes: Tensor) -> None:
    share = pyro.sample("share", shares.unnormalized())
    with pyro.plate("voters", len(votes)):
        pyro.sample("vote", dist.Categorical(share), obs=votes)


votes = torch.tensor([0] * 3 + [1] * 9)
found = ep.sample_chains(ep.ChEES(), count, (votes,), draws=DRAWS, warmup=200, progress=False)
share = found.samples["share"].flatten(0, 1)
total = weights + votes.bincount(minlength=3)
print("after votes: means", rounded(share.mean(0)), "exact", rounded(total / total.sum()))
plots.show(
    plots.scatter_panels(
        {"before the votes": x[:2_000, :2], "after the votes": share[:2_000, :2]},
        title="Shares of the first two",
        extent=(0.0, 1.0, 0.0, 1.0),
        labels=("share of the first", "share of the second"),
    ),
    "03_simplex",
)

# %% [markdown]
# ## Exercises
#
# 1. Move the noisy point to the middle between both moons. Which of the methods still gives both pieces their share?
# 2. Write the eight schools without `eta`, `theta` drawn from `Normal(mu, tau)` itself. What do `problems()` say now?
# 3. Make the noise of the measurement unknown, with a prior of its own.
