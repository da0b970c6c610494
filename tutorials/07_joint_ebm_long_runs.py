# %% [markdown]
# # One energy over points and noise levels, and chains that run for long
#
# A `JointEBM` is p(x, t) ∝ exp(−U(x, t)): one energy, one normalizer, for the data and all its noisier versions.  So
# p(t | x), how noisy a point looks, is a probability for each level t, and a chain can walk among levels: up to noise,
# where it crosses from mode to mode, and back (DA-EBM; Zhang, Tan & Ou 2023).  *Persistent* chains, which go on from
# update to update in place of beginning anew, train it, and it keeps what it learned when chains run on.
#
# It takes about three minutes; smaller numbers in the first cell make it shorter.

# %%
import warnings

import pyro
import torch

import energyppl as ep
from energyppl import plots

STEPS = 1000  # updates of training
LONG = 20_000  # moves of the long runs
pyro.set_rng_seed(0)
torch.set_num_threads(1)
options = ep.TrainingOptions(steps=STEPS)
toy = ep.toys.Rings()
data = toy.sample((20_000,))

# %% [markdown]
# ## Four rings, two ways
#
# The joint model has seven levels, clean data among them; the plain `EBM` has one.  Both learn by the same objective,
# from 4,096 chains that training keeps, in its checkpoints too.  A *sweep* moves each chain at its level and then draws
# its level anew.  The record says how levels are occupied (1 is an equal share) and how old the chains are.

# %%
schedule = ep.NoiseSchedule.sqrtcumlinear(6, start=0.01, end=0.3)
joint = ep.JointEBM(ep.MLPEnergy((2,), levels=7), schedule)
history = ep.fit(joint, data, ep.PersistentLikelihood(), options=options, progress=False)
plain = ep.EBM(ep.MLPEnergy((2,), levels=1))
ep.fit(plain, data, ep.PersistentLikelihood(sweeps=1), options=options, progress=False)
names = {
    "energy_gap": "energy gap (nats)",
    "level_least": "share of the rarest level",
    "level_most": "share of the most frequent one",
}
curves = {title: (history.column("step"), history.column(name)) for name, title in names.items()}
plots.show(plots.training_curves(curves, title="The joint model in training"), "07_training")
last = history.records[-1].values
print(f"levels' shares of the chains: {last['level_least']:.2f} to {last['level_most']:.2f} of an equal one")

# %% [markdown]
# ## Samples from noise, by level moves
#
# Every chain begins at the noisiest level and is read at its tenth visit to level 0.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a model of a few updates may not come down in time, and says so
    drawn = joint.sample((2000,), max_sweeps=min(2000, STEPS))
plots.show(
    plots.scatter_panels(
        {"data": data[:2000], "joint model": drawn, "plain model": plain.sample((2000,))}, title="Samples"
    ),
    "07_samples",
)

# %% [markdown]
# ## How noisy is a point?
#
# p(t | x) at data that were noised to each level: the model's guess, a row for each true level.

# %%
for level in range(joint.levels):
    guess = joint.level_probabilities(joint.diffuse(data[:1000], level)).mean(0)
    print(f"level {level}: " + " ".join(f"{float(p):.2f}" for p in guess))

# %% [markdown]
# ## Long runs
#
# Half of the chains begin at data, half at noise.  Those from the data must keep a quarter of their points on each
# ring; those from noise must arrive at the same shares. `run.problems` says in words what is wrong, and `to_arviz()`
# exports each group to ArviZ.


# %%
def ring(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=-1).round().clamp(1, 4).long() - 1


for name, model in (("joint", joint), ("plain", plain)):
    run = ep.long_run(model, data, steps=LONG, kept=100, chains=100, assign=ring, modes=4, progress=False)
    for start, group in (("data", run.from_data), ("noise", run.from_noise)):
        share = " ".join(f"{float(s):.3f}" for s in group.occupancy.share)
        drift = group.drift
        print(f"{name}, from {start}: rings {share}; energy {drift.first:.2f} to {drift.last:.2f} nats")
    print(*run.problems, sep="\n")
    panels = {
        f"from {start}, {when}": group.chains.draws[:, kept].flatten(0, 1)
        for start, group in (("data", run.from_data), ("noise", run.from_noise))
        for when, kept in (("early", slice(10)), ("late", slice(-10, None)))
    }
    plots.show(plots.scatter_panels(panels, title=f"Long runs, {name} model"), f"07_{name}")
    energies = {"from data": run.from_data.chains.energy, "from noise": run.from_noise.chains.energy}
    figure = plots.drift_plot(energies, title=f"Energy along long runs, {name} model")
    plots.show(figure, f"07_{name}_drift")

# %% [markdown]
# ## What it says of densities
#
# In the plane level 0 is normalized by quadrature.  The gap is by how much held-out points are less likely than under
# the truth.

# %%
fresh = toy.sample((5000,))
for name, model in (("joint", joint), ("plain", plain)):
    with torch.no_grad():
        gap = float((toy.log_prob(fresh) - model.log_prob(fresh)).mean())
    print(f"{name}: {gap:.3f} nats from the truth, log Z {model.log_normalizer().estimate:.3f}")

# %% [markdown]
# ## Exercises
#
# 1. Set `sweeps=1` for the joint model. Do the levels still get equal shares of the chains?
# 2. Train with a tenth of the steps and run the long chains again. Which line of `problems` comes first?
