# %% [markdown]
# # Two dimensions: declare, train, look, sample, normalize
#
# An energy-based model is a density that is known up to a constant: p(x) = exp(−U(x)) / Z.  A network computes the
# *energy* U(x), one number for each point, low where data are; the *normalizing constant* Z makes the density integrate
# to one.  Energies, log Z and log densities are in *nats*: one nat more of energy is a factor of e less of density.  In
# two dimensions everything can be checked against the truth, so that is where to learn how such a model behaves.
#
# It takes about a minute on one core; smaller numbers in the first cell make it shorter.

# %%
import math
import time

import pyro
import torch

import energyppl as ep
from energyppl import plots
from energyppl.metrics.two_sample import energy_distance_test

STEPS = 1500  # updates of training
pyro.set_rng_seed(0)

# %% [markdown]
# ## Data whose truth is known
#
# Every toy has `sample`, `log_prob` and `entropy`, the mean of −log p, below which no model's can fall.  The
# checkerboard is hard: its density has edges everywhere.

# %%
toy = ep.toys.Checkerboard()
data, held_out = toy.sample((50_000,)), toy.sample((10_000,))
print(f"checkerboard: entropy {toy.entropy():.4f} nats (ln 32 = {math.log(32):.4f})")

# %% [markdown]
# ## Declare
#
# Any module `net(x, level)` that returns an energy for each point will do; `MLPEnergy` is a perceptron on random
# Fourier features.  A `RecoveryEBM` has an energy at each of several *noise levels*, and the schedule says how much
# noise a level adds: level 0 is the data with hardly any noise, level 5 is the noisiest with an energy of its own, and
# one step above it is white noise.

# %%
ebm = ep.RecoveryEBM(ep.MLPEnergy(event_shape=(2,)), ep.NoiseSchedule.cosine(levels=6))
print("noise of each level:", [round(float(s), 4) for s in ebm.schedule.sigma_bar[:-1]])

# %% [markdown]
# ## Train
#
# Recovery likelihood (Gao et al. 2021) never needs log Z: each update adds noise to the data twice and asks the model
# what the point was after the first time, given what it is after the second.  That question is easy, since the answer
# is near: a short chain of random moves along the energy draws from it.  The bar shows the loss, the *energy gap*
# between data and the model's own draws (it should hover around zero), and the *acceptance*, the share of the chains'
# moves that are taken.

# %%
begin = time.perf_counter()
history = ep.fit(ebm, data, options=ep.TrainingOptions(steps=STEPS, evaluate_every=min(100, STEPS)))
print(history, f"in {time.perf_counter() - begin:.0f} s")
steps = history.column("step")
plots.show(
    plots.training_curves(
        {
            "energy gap (nats)": (steps, history.column("energy_gap")),
            "acceptance": (steps, history.column("acceptance")),
            "distance moved (noise widths)": (steps, history.column("moved")),
        },
        title="Training on the checkerboard",
    ),
    "01_training",
)

# %% [markdown]
# ## Normalize
#
# In one and two dimensions `log_normalizer` integrates on a grid and says how well; `log_prob` is then a true log
# density.  The held-out negative log-likelihood can't be lower than the entropy; the excess is what the model misses.

# %%
log_z = ebm.log_normalizer()
print(f"log Z = {log_z.estimate:.4f} ± {log_z.standard_error:.1g} nats, from {log_z.evaluations:,} evaluations")
with torch.no_grad():
    difference = toy.log_prob(held_out) - ebm.log_prob(held_out)
excess, error = float(difference.mean()), float(difference.std()) / len(held_out) ** 0.5
print(f"held-out excess over the entropy: {excess:.4f} ± {error:.4f} nats")

axis = torch.linspace(-5, 5, 300)
points = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    energy = ebm.marginal().energy(points).reshape(300, 300).T
plots.show(
    plots.energy_landscape(energy, extent=(-5, 5, -5, 5), data=data[:300], title="The learned energy of level 0"),
    "01_energy",
)

# %% [markdown]
# ## Sample
#
# From white noise, level by level.  `generate` also gives the path and what it cost.  A two-sample test compares the
# samples with fresh data: a p-value below .05 or so would say that they differ.

# %%
found = ebm.generate((2_000,), steps=40)
x = ebm.loc + ebm.scale * found.x
test = energy_distance_test(x, ebm.diffuse(toy.sample((2_000,)), 0))
print(
    f"{found.evaluations} evaluations a sample, {100 * float(toy.on_support(x).float().mean()):.1f} % on the support, "
    f"energy-distance test against fresh data: p = {test.p_value:.2f}"
)
titles = ["white noise", *[f"level {t}" for t in reversed(range(ebm.schedule.levels))]]
plots.show(plots.noise_to_data(found.path, titles, title="From noise to data, in units of the deviation"), "01_path")
plots.show(plots.scatter_panels({"data": data[:2000], "samples": x}, title="Data and samples"), "01_samples")

# %% [markdown]
# ## What goes wrong with fixed steps
#
# The recipe of the first papers: Langevin steps (down the gradient, plus noise) of one fixed size, chains that start at
# the *noisy* point.  Where the density is sharp the steps are too long, chains stop being draws of the model, and
# nothing holds the energies: the gap runs away.  energyppl stops such a run and says what happened.  The defaults
# (steps adapted to an acceptance, chains that start at the data) keep it together.

# %%
recipes = {
    "fixed steps, from the noisy point": ep.RecoveryLikelihood(
        ep.Langevin(0.5), 15, ep.objectives.from_noisy, adapt=False
    ),
    "adapted steps, from the data": ep.RecoveryLikelihood(),
}
gaps = {}
for name, objective in recipes.items():
    pyro.set_rng_seed(0)
    other = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
    run = ep.Training(other, data, objective, options=ep.TrainingOptions(steps=max(1, STEPS // 3)))
    outcome = "went through"
    try:
        for _ in run:
            pass
    except ep.TrainingDiverged as diverged:
        outcome = str(diverged)
    kept = run.finish()
    gaps[name] = (kept.column("step"), kept.column("energy_gap"))
    print(f"{name}: {outcome}")
plots.show(plots.training_curves(gaps, title="The energy gap of two recipes, in nats"), "01_fixed_steps")

# %% [markdown]
# ## Exercises
#
# 1. Train on `ep.toys.Rings()` in place of the checkerboard. Which of the two has the smaller excess over its entropy,
#    and why?
# 2. Ask `generate` for `steps=5`. How much of the samples is off the support? Where are they?
# 3. Write a network of your own: any module with `event_shape = (2,)` and `forward(x, level)`. Give it to
#    `RecoveryEBM`.
