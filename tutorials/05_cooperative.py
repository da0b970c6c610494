# %% [markdown]
# # Cooperative training: a network that says where chains should begin
#
# Training and samples go from each noise level t + 1 to the next sharper one, t, by draws of the *recovery
# distribution* p(x_t | x_{t+1}): what the point may have been with less noise.  A chain draws from it, and a chain that
# begins near where it has to go needs few moves.  CDRL (Zhu et al. 2024) learns such beginnings beside the energy: an
# *initializer* q(x_t | x_{t+1}), a network that answers with a Gaussian.
#
# It takes about two minutes; smaller numbers in the first cell make it shorter.

# %%
import pyro
import torch

import energyppl as ep
from energyppl import plots

STEPS = 1500  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)
options = ep.TrainingOptions(steps=STEPS)
toy = ep.toys.Checkerboard()
data = toy.sample((20_000,))

# %% [markdown]
# ## Two models, one with an initializer
#
# `CooperativeRecovery` trains both networks at once: the energy by recovery likelihood, the initializer by where the
# kernel took its draws (MCMC teaching).  `learn_scale` lets q be as wide as the recovery distribution is.

# %%
plain = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
ep.fit(plain, data, options=options, progress=False)
initializer = ep.MLPInitializer((2,), learn_scale=True)
ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6), initializer=initializer)
history = ep.fit(ebm, data, ep.CooperativeRecovery(), options=options, progress=False)
names = {
    "energy_gap": "energy gap (nats)",
    "initializer_loss": "the initializer's loss",
    "initializer_drop": "nats that chains fall from its draws",
}
curves = {title: (history.column("step"), history.column(name)) for name, title in names.items()}
plots.show(plots.training_curves(curves, title="Both networks in training"), "05_training")

# %% [markdown]
# ## Fewer steps for the same samples

# %%
for steps in (1, 3, 10):
    clouds = {"without": plain.sample((4000,), steps=steps), "with": ebm.sample((4000,), steps=steps)}
    shares = {name: float(toy.on_support(x).float().mean()) for name, x in clouds.items()}
    print(f"{steps:2} moves a level: {shares['without']:.3f} on the support without, {shares['with']:.3f} with")
    panels = {"data": data[:4000], **{f"{name} an initializer": x for name, x in clouds.items()}}
    plots.show(plots.scatter_panels(panels, title=f"Moves at each level: {steps}"), f"05_samples_{steps}")

# %% [markdown]
# ## Is it any good?
#
# The report compares its draws, level by level, with chains that begin at the data and so are draws of the model from
# the start: how many nats the energy has still to fall, with the initializer and without, and how wide its draws are
# beside theirs (1 is right, 0 would be an initializer that has collapsed to a point).

# %%
report = ep.evaluation.initializer_report(ebm, data[:1000])
for level, (own, other, spread) in enumerate(zip(report.drop, report.drop_without, report.relative_std, strict=True)):
    print(f"level {level}: {float(own):+.2f} nats to fall, {float(other):+.2f} without it; spread {float(spread):.2f}")
print(*report.problems, sep="\n")

# %% [markdown]
# ## It changes speed, never the target
#
# As a proposal of `IndependentMetropolis`, which accepts or rejects its draws, it is corrected exactly.  Here 4,000
# chains draw from one recovery distribution: q alone, and q corrected, with local moves in between (`MALA`: Langevin
# steps that are accepted or rejected).  To Pyro it is a guide: `ebm.guide(noisy, level)`.

# %%
noisy = ebm.diffuse(data[:1], 2).expand(4000, 2)
guide, recovery = ebm.guide(noisy, 1), ebm.recovery(noisy, 1)
kernel = ep.kernels.Cycle(ep.kernels.IndependentMetropolis(guide), ep.MALA(0.1))
exact = ep.sampling.run_chain(kernel, recovery.potential, guide.sample(), 50)
print(f"q's proposals and MALA's moves: {float(exact.accept_prob.mean()):.2f} accepted")
plots.show(
    plots.scatter_panels(
        {"the guide q": guide.sample(), "corrected": exact.state.x, "ebm.recovery": recovery.sample()},
        title="One recovery distribution, three ways",
    ),
    "05_corrected",
)

# %% [markdown]
# ## Exercises
#
# 1. Set `learn_scale=False`. What does the initializer's spread do at the noisiest level?
# 2. How many moves a level does the model without an initializer need for the share that the other has with one?
