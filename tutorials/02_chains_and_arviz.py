# %% [markdown]
# # Many chains: run them, look at them with ArviZ, and know when not to believe them
#
# A *chain* is a sequence of points, each made from the last by a *kernel*, whose random moves leave a density as it is;
# after a while the points are draws of that density.  A kernel here moves a whole batch of chains at once.  Many chains
# give more than more draws: they can be compared, and a chain that is stuck, lost or in one mode of many differs from
# the others.
#
# It takes about half a minute on one core; smaller numbers in the first cell make it shorter.

# %%
import warnings

import numpy as np
import pyro
import torch

import energyppl as ep
from energyppl import plots
from energyppl.inference.evaluation.chains import energy_drift, level_acceptance, mode_occupancy

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 whenever it is imported
    import arviz as az

DRAWS = 400  # of each chain
STEPS = 400  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# sample_chains also warns of what chains.problems() lists.  Here it is printed where it belongs in the text.
warnings.simplefilter("ignore", ep.errors.ChainWarning)

# %% [markdown]
# ## Sixty-four chains on a banana
#
# Hamiltonian Monte Carlo (`HMC`) lets every point roll along the energy for a number of steps, its *trajectory*, and
# accepts or rejects where it ends; one whose energy explodes on the way is a *divergence*.  A *mass* for each
# coordinate says how far it should roll.  `sample_chains` takes a kernel; an energy, a distribution or a Pyro model;
# and the numbers of chains and draws.  During a *warm-up*, whose draws are thrown away, it tunes step size, mass and,
# for `ChEES`, the length of trajectories, learned by comparing chains.  `chains.problems()` says in words what not to
# trust.

# %%
banana = ep.toys.Banana()
start = torch.randn(64, 2)
guessed = ep.sample_chains(ep.HMC(0.4, 10), banana, draws=DRAWS, warmup=0, init=start, progress=False)
print("a guessed step:", *guessed.problems() or ["nothing noticed"], sep="\n  ")

# %% [markdown]
# The banana's tips are sharp.  A guessed step is too long there: trajectories fly off, and chains stay where they
# should leave.  A warm-up looks for a step that suits all places, since a divergence counts for more than a rejection.
# If `problems()` still finds something, it says what to do; on sharp targets that is mostly to ask for shorter steps,
# by a higher `target_acceptance`.

# %%
runs = {"a guessed step": guessed}
for name, more in (("tuned", {}), ("tuned to 0.95", {"target_acceptance": 0.95})):
    runs[name] = ep.sample_chains(ep.ChEES(), banana, draws=DRAWS, warmup=300, init=start, progress=False, **more)
    print(f"{name}:", *runs[name].problems() or ["nothing noticed"], sep="\n  ")
for name, found in runs.items():
    print(f"{name}: {found.gradients / DRAWS:.1f} gradients a draw, acceptance {found.acceptance.mean():.2f}")
plots.show(
    plots.scatter_panels(
        {"exact draws": banana.sample((2_000,)), **{name: found.flat(2_000)["x"] for name, found in runs.items()}},
        title="A banana, and chains of a guessed and of tuned kernels",
    ),
    "02_banana",
)

# %% [markdown]
# ## The same chains in ArviZ
#
# `to_arviz` gives `InferenceData` (ArviZ 0.x) or a `DataTree` (1.x).  R-hat compares chains: 1 if they agree; look
# closer above 1.01, and do not trust them above 1.05, of which `problems()` warns. The effective sample sizes say how
# many independent draws the means (`ess_bulk`) and the tails (`ess_tail`) are worth.

# %%
columns = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]
for name, found in runs.items():
    print(f"{name}:", az.summary(found.to_arviz(), round_to="none")[columns].round(3), sep="\n")
truth = banana.sample((100_000,)).std(0)
print("standard deviations of exact draws:", [round(float(s), 3) for s in truth])


chains = runs["tuned to 0.95"]
few = chains.to_arviz().sel(chain=range(4))  # more lines and bars can't be read
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 calls matplotlib 3.11 in the old way
    for name, draw in (("02_trace", az.plot_trace), ("02_rank", az.plot_rank), ("02_energy", az.plot_energy)):
        plot = draw(few)  # ArviZ 0.x hands back matplotlib axes, 1.x a PlotCollection
        figure = plot.viz["figure"].item() if hasattr(plot, "viz") else np.ravel(plot)[0].figure
        plots.show(figure, name)
# All sixty-four at once: a row for each chain instead of a histogram.
both = {"guessed": guessed, "tuned": chains}
ranks = {f"x[{i}], {name}": found.draws[..., i] for name, found in both.items() for i in (0, 1)}
plots.show(plots.rank_plot(ranks, title="Ranks of every chain"), "02_rank_all")

# %% [markdown]
# ## What the warm-up did
#
# `adapt` is the warm-up by itself.  It returns the tuned kernel, where the chains are, and what happened on the way.
# The target is a narrow, slanted Gaussian in ten dimensions: a diagonal mass can't see the slant.  The default can: to
# the diagonal it adds directions along which the target is longer or shorter than the diagonal says.

# %%
size = 10
covariance = torch.full((size, size), 0.95) + 0.05 * torch.eye(size)
covariance = covariance * torch.logspace(-1, 1, size).outer(torch.logspace(-1, 1, size))
precision = torch.linalg.inv(covariance.double()).float()
slanted = ep.Energy(lambda x: 0.5 * ((x @ precision) * x).sum(-1), (size,))
curves = {}
for name, mass in (
    ("identity", ep.kernels.identity_mass),
    ("diagonal", ep.kernels.diagonal_mass),
    ("low rank", ep.kernels.low_rank_mass),
):
    tuned = ep.adapt(ep.ChEES(), slanted, torch.randn(64, size), 300, mass=mass)
    found = ep.sample_chains(
        tuned.kernel, slanted, init=tuned.state.x, warmup=0, draws=max(20, DRAWS // 4), progress=False
    )
    worth = float(az.summary(found.to_arviz(), round_to="none")["ess_bulk"].min()) / (64 * found.gradients)
    print(
        f"{name} mass: step size {float(tuned.step_sizes[-1]):.3f}, trajectory length {tuned.kernel.length:.2f}, "
        f"acceptance {float(tuned.acceptance[-50:].mean()):.2f}; {worth:.4f} effective draws a gradient"
    )
    steps = torch.arange(len(tuned.step_sizes))
    curves[f"step size, {name} mass"] = (steps, tuned.step_sizes)
    if mass is ep.kernels.low_rank_mass:
        curves["acceptance, low rank mass"] = (steps, tuned.acceptance)
        directions = tuned.kernel.inverse_mass
        if isinstance(directions, ep.kernels.LowRankMass):
            print("  stretched directions:", [round(float(s), 3) for s in directions.stretch])
plots.show(plots.training_curves(curves, title="The warm-up of one target"), "02_warmup")

# %% [markdown]
# ## What a stuck chain looks like
#
# Neal's funnel is a needle at one end, here of width exp(−6) where three of the sixteen chains begin.  Fixed steps that
# suit its mouth are hundreds of times too long for the needle, and every proposal is refused.

# %%
funnel = ep.toys.Funnel(dim=5)
init = torch.randn(16, 5)
init[:3] = torch.tensor([-12.0, 0, 0, 0, 0])
stuck = ep.sample_chains(ep.HMC(0.6, 10), funnel, chains=16, warmup=0, draws=DRAWS, init=init, progress=False)
print("the funnel:", *stuck.problems(), sep="\n  ")
print("R-hat of the funnel's x[0]:", round(float(az.summary(stuck.to_arviz())["r_hat"].iloc[0]), 2))
plots.show(
    plots.trace_plot(
        {"log width": stuck.draws[..., 0], "x[1]": stuck.draws[..., 1]},
        title="Three stuck chains among sixteen",
        groups={"stuck": stuck.stuck.nonzero()[:, 0], "moving": (~stuck.stuck).nonzero()[:, 0]},
    ),
    "02_stuck",
)

# %% [markdown]
# ## Modes
#
# Eight well-separated Gaussians.  A chain that follows gradients stays in the mode where it began: each looks healthy
# by itself, and only the comparison (R-hat) tells.  `Tempered` gives each chain replicas at higher temperatures, where
# there are no barriers, and lets them swap.

# %%
toy = ep.toys.EightGaussians()
kernels = {
    "ChEES": ep.ChEES(),
    "Tempered HMC": ep.kernels.Tempered(ep.HMC(steps=5), betas=(1.0, 0.4, 0.15, 0.05)),
}
modes = {}
for name, kernel in kernels.items():
    found = ep.sample_chains(kernel, toy, draws=DRAWS, warmup=200, progress=False)
    modes[name] = found
    visits = mode_occupancy(found.draws, toy.modes, toy.number_of_modes)
    r_hat = float(az.summary(found.to_arviz(), round_to="none")["r_hat"].max())
    print(
        f"{name}: worst R-hat {r_hat:.3f}, {visits.switches.double().mean():.1f} changes of mode a chain; shares of "
        f"the modes {[round(float(s), 3) for s in visits.share]}"
    )
one = {f"one chain, {name}": found.draws[0] for name, found in modes.items()}
plots.show(plots.scatter_panels({"exact draws": toy.sample((DRAWS,)), **one}, title="Eight modes"), "02_modes")

# %% [markdown]
# ## Chains on a learned energy
#
# A trained model has no truth to compare with, but it has data.  Long chains that begin at data must stay where data
# are: if their mean energy drifts away, the model has mass elsewhere that the short chains of its training never found.
# `energy_drift` fits a line to each chain's energies; its error comes from how chains differ.

# %%
moons = ep.toys.TwoMoons()
rows, held_out = moons.sample((20_000,)), moons.sample((5_000,))
ebm = ep.RecoveryEBM(ep.MLPEnergy(event_shape=(2,)), ep.NoiseSchedule.cosine(levels=6))
options = ep.TrainingOptions(steps=STEPS, evaluate_every=min(100, STEPS))
print(ep.fit(ebm, rows, options=options, progress=False))
begin = torch.cat([ebm.diffuse(held_out[:32], 0), ebm.sample((32,))])
learned = ep.sample_chains(
    ep.ChEES(), ebm.marginal(), draws=DRAWS, warmup=200, init=begin, keep_warmup=True, progress=False
)
drift = energy_drift(learned.energy[:32])
with torch.no_grad():
    level = float(ebm.marginal().energy(ebm.diffuse(held_out, 0)).mean())
print(
    f"chains from data: {drift.slope:+.2f} ± {drift.standard_error:.2f} nats per 1,000 draws (z = {drift.z:+.1f}); "
    f"they end at {drift.last:.3f} ± {drift.last_error:.3f} nats, held-out data are at {level:.3f}"
)
print("the learned energy:", *learned.problems() or ["nothing noticed"], sep="\n  ")
print("acceptance of each level's own chains:", [round(float(a), 2) for a in level_acceptance(ebm).acceptance])
warm = learned.warmup
assert warm is not None
energy = torch.cat([warm.energy, learned.energy], 1)
plots.show(
    plots.drift_plot(
        {"from data": energy[:32], "from samples": energy[32:]},
        title="Energy along chains on a learned energy",
        warmup=200,
        reference=("held-out data", level),
    ),
    "02_drift",
)

# %% [markdown]
# On a table of your own, `energyppl fit table.csv --out run` and then `energyppl diagnose run` run such chains, write
# them for ArviZ, draw them and end with a verdict.

# %% [markdown]
# ## Exercises
#
# 1. Divide the effective sample sizes of the three runs on the banana by their gradients. What does a target acceptance
#    of 0.95 cost, and what does it buy? Try 0.99.
# 2. Begin all sixteen chains on the funnel at its mouth. Does `problems()` still find something? Should it?
# 3. How many replicas does `Tempered` need on the eight Gaussians before R-hat is below 1.01?
