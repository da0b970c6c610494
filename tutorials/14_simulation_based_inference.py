# %% [markdown]
# # Simulation-based inference
#
# A simulator draws data from parameters, and its likelihood is not known.  An unnormalized neural likelihood is learned
# from simulations (Glaser et al. 2022): an energy U(x; θ) whose log Z(θ) training brings to 0, so that it is a
# likelihood for any observation, and any prior, without simulating more.  The task is the "two moons" of the public sbi
# benchmark (Lueckmann et al. 2021), whose posterior is known.
#
# It takes about two minutes on one core; smaller numbers in the first cell make it shorter.

# %%
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.neighbors import KNeighborsClassifier

import energyppl as ep
from energyppl import plots

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 whenever it is imported
    import arviz as az

STEPS = 2000  # updates of training
DRAWS = 20  # of the posterior
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Simulations
#
# `simulate` draws parameters from the prior and refuses simulations that fail: a `NaN` would be learned from otherwise.


# %%
def crescent(count: int) -> torch.Tensor:
    angle = math.pi * (torch.rand(count) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(count)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def two_moons(theta: torch.Tensor) -> torch.Tensor:
    moved = torch.stack([-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]], -1) / math.sqrt(2.0)
    return crescent(len(theta)) + moved


prior = dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1)
simulations = ep.models.simulate(two_moons, prior, 10_000)
fixed = two_moons(torch.tensor([[0.3, -0.2]]).expand(2000, 2))
clouds = {"all simulations": simulations.x[:2000], "of one parameter": fixed}
plots.show(plots.scatter_panels(clouds, title="Simulated data"), "14_simulations")
try:
    ep.models.simulate(lambda theta: two_moons(theta).log(), prior, 100)
except ep.InvalidInput as refusal:
    print(refusal)

# %% [markdown]
# ## The likelihood
#
# A conditional energy of x whose context is θ.  The crescent is a hundredth wide, so the sharpest level has little
# noise.  `fit` trains it by telling simulations from draws of a Gaussian given θ, which is learned beside it: that
# normalizes the energy for every θ.

# %%
net = ep.MLPEnergy(2, context_shape=2)
ebm = ep.models.ConditionalEBM(net, ep.NoiseSchedule.cosine(16, log_snr_max=12.0, log_snr_min=-6.0))
history = ep.fit(ebm, simulations, steps=STEPS, progress=False)
measure = history.column("held_out")
at = np.flatnonzero(np.isfinite(measure))
curves = {
    "contrast": (np.arange(len(measure)), history.column("contrast")),
    "held-out nats for each row": (at, measure[at]),
}
plots.show(plots.training_curves(curves, title="Training"), "14_training")

# %% [markdown]
# What training implies of log Z(θ) can be checked by annealing: here for three parameters.  The crescents are too thin
# for a grid.

# %%
some = prior.sample((3,))
p = ebm.given(some)
annealed = torch.tensor([found.estimate for found in p.anneal(method=ep.normalizing.BAR(256))])
off = annealed - p.implied_log_normalizer().detach().cpu()
print(f"log Z(θ) is off by {float(off.abs().mean()):.3f} nats on average, {float(off.abs().max()):.3f} at most")

# %% [markdown]
# ## A posterior, by many chains
#
# `posterior` is the density of θ given what was observed, on the prior's support.  Its chains begin at draws of the
# prior that are resampled by the likelihood, so that each of the two moons gets its share.  Few chains cross from one
# moon to the other, which R-hat notices and a warning says: here it is no fault.

# %%
warnings.simplefilter("ignore", ep.errors.ChainWarning)
observed = torch.zeros(2)
given_x = ep.models.posterior(ebm, prior, observed)
chains = ep.sample_chains(ep.HMC(steps=5), given_x, chains=200, draws=DRAWS, thin=5, warmup=100, progress=False)
theta = chains.samples["x"].flatten(0, 1)


def exact(x: torch.Tensor, count: int) -> torch.Tensor:
    """Draw noise, and work out which parameters it leaves possible; the Jacobian is constant."""
    apart = math.sqrt(2.0) * (x - crescent(count))
    total = -apart[:, 0] * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    found = 0.5 * torch.stack([total - apart[:, 1], total + apart[:, 1]], -1)
    return found[(apart[:, 0] <= 0.0) & (found.abs() < 1.0).all(-1)]


truth = exact(observed, 4000)
pair = {"exact posterior": truth[:2000], "chains": theta[torch.randperm(len(theta))[:2000]]}
plots.show(plots.scatter_panels(pair, title="Two moons", labels=("$θ_1$", "$θ_2$")), "14_posterior")
count = min(len(theta), len(truth)) // 2
both = torch.cat([theta[torch.randperm(len(theta))[: 2 * count]], truth[: 2 * count]]).numpy()
labels = np.repeat([0, 1], 2 * count)
half = np.random.default_rng(0).permutation(len(both))
fitted = KNeighborsClassifier(20).fit(both[half[: len(both) // 2]], labels[half[: len(both) // 2]])
accuracy = fitted.score(both[half[len(both) // 2 :]], labels[half[len(both) // 2 :]])
print(f"a classifier tells chains from exact draws with an accuracy of {accuracy:.2f}; 0.5 is a coin's")

# %% [markdown]
# ArviZ takes the chains: summaries, ranks, and whatever else it offers.

# %%
print(az.summary(chains.to_arviz(), round_to="none")[["mean", "sd", "ess_bulk", "r_hat"]].round(3))
ranked = {f"θ{i + 1}": chains.samples["x"][:40, :, i] for i in range(2)}
plots.show(plots.rank_plot(ranked, title="Ranks of 40 chains"), "14_ranks")

# %% [markdown]
# ## A term of a Pyro model
#
# `ebm.given(theta)` is a distribution, so it is a site: three observations, and a prior that the simulations never saw.

# %%
several = two_moons(torch.tensor([[0.4, 0.1]]).expand(3, 2))


def model(x: torch.Tensor) -> None:
    shared = pyro.sample("shared", dist.Normal(torch.zeros(2), 0.3).to_event(1))
    for i, row in enumerate(x):
        pyro.sample(f"x_{i}", ebm.given_unchecked(shared), obs=row)


found = ep.sample_chains(ep.HMC(steps=5), model, (several,), chains=100, draws=DRAWS, warmup=100, progress=False)
shared = found.samples["shared"].flatten(0, 1)
cloud = {"chains of a Pyro model": shared[:2000]}
plots.show(plots.scatter_panels(cloud, title="Three observations", labels=("$θ_1$", "$θ_2$")), "14_site")
print(f"mean of |θ₁ + θ₂|: {float(shared.sum(-1).abs().mean()):.2f}; it was 0.5")

# %% [markdown]
# ## Exercises
#
# 1. Observe (−0.6, 0.4) in place of (0, 0). Where are the two moons now, and does the classifier tell them apart?
# 2. Train on 1,000 simulations. By how much does log Z(θ) get worse, and by how much the posterior?
# 3. Double the three observations of the last model. How much narrower does |θ₁ + θ₂| become?
