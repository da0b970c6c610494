# %% [markdown]
# # Conditional densities
#
# A context goes in and a distribution comes out.  First one number given another, where the truth is known: two modes
# whose weights change.  Then the progression of scikit-learn's diabetes patients given ten measurements: a density, not
# only a mean, with intervals that can be checked on rows that training has not seen.  Last a context that is an image.
#
# It takes about a minute and a half on one core; smaller numbers in the first cell make it shorter.

# %%
import warnings

import numpy as np
import pyro
import torch
from pyro.infer import Predictive
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.distributions import Normal

import energyppl as ep
from energyppl import plots

STEPS = 1500  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Two modes whose weights change
#
# `MLPEnergy(1, context_shape=1)` is U(y; c), of two perceptrons.  One reads the context c and returns a Gaussian, a
# first guess of y, together with scales and shifts for each layer of the other one, which reads y and returns what the
# energy has beyond that guess.  `ConditionalEBM` is trained on pairs: one number given a context by
# `LevelScoreMatching`, 2 to 16 numbers by `ProposalContrastive`.


# %%
def modes(c: torch.Tensor) -> tuple[Normal, torch.Tensor]:
    mean = torch.stack([c.sin() - 1.0, c.sin() + 1.0], -1)
    return Normal(mean, torch.tensor([0.2, 0.35])), torch.stack([torch.sigmoid(c), torch.sigmoid(-c)], -1)


def draw(c: torch.Tensor) -> torch.Tensor:
    normal, weights = modes(c)
    return normal.sample().gather(1, torch.multinomial(weights, 1))


context = 6.0 * torch.rand(5000) - 3.0
y = draw(context)
schedule = ep.NoiseSchedule.cosine(12, log_snr_max=6.0, log_snr_min=-6.0)
ebm = ep.models.ConditionalEBM(ep.MLPEnergy(1, context_shape=1), schedule)
history = ep.fit(ebm, (y, context[:, None]), steps=STEPS, progress=False)
print(history)
measure = history.column("held_out")
at = np.flatnonzero(np.isfinite(measure))
curves = {
    "denoising error": (np.arange(len(measure)), history.column("denoising")),
    "held-out nats for each row": (at, measure[at]),
}
plots.show(plots.training_curves(curves, title="Training"), "12_training")

# %% [markdown]
# ## A batch of contexts is a batch of distributions
#
# `ebm.given(contexts)` has the contexts' batch shape, so one call evaluates a whole map.  In one dimension log Z is
# integrated for each context: `log_prob` is exact for the energy.

# %%
asked, levels = torch.linspace(-3.0, 3.0, 121), torch.linspace(-3.0, 3.0, 161)
p = ebm.given(asked[:, None])
print(p.batch_shape, p.event_shape)
with torch.no_grad():
    learned = p.log_prob(levels[:, None, None].expand(-1, len(asked), 1)).exp()  # (levels, contexts)
normal, weights = modes(asked)
true = (normal.log_prob(levels[:, None, None]).exp() * weights).sum(-1)
plots.show(
    plots.density_grid(
        {"truth": [true], "model": [learned]},
        ["p(y | c)"],
        extent=(-3, 3, -3, 3),
        title="Brighter is denser",
        labels=("context c", "y"),
    ),
    "12_densities",
)
distance = (learned - true).abs().sum(0) * float(levels[1] - levels[0])
print(f"distance in total variation, averaged over contexts: {0.5 * float(distance.mean()):.3f}")

# %% [markdown]
# ## What training implies of log Z
#
# The level tie has brought every context's energy to a log Z of about 0 in coordinates of unit variance, without any
# integral.  In many dimensions that is all there is for a whole batch; `anneal()` checks a context, with an interval.

# %%
with torch.no_grad():
    off = p.quadrature() - p.implied_log_normalizer()
plots.show(
    plots.line_plot(
        {"off": (asked, off)}, title="Implied log Z", labels=("context c", "log Z less what is implied, nats")
    ),
    "12_log_z",
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is part of the estimate, and printed
    (annealed,) = ebm.given(torch.tensor([[1.0]])).anneal(method=ep.normalizing.BAR(128))
print(f"at c = 1: annealed {annealed.estimate:.3f} ± {annealed.standard_error:.3f}, integrated", end=" ")
print(f"{float(ebm.given(torch.tensor([1.0])).quadrature().detach()):.3f}; {annealed.warning or 'no warning'}")

# %% [markdown]
# ## Samples, and contexts that training never came near
#
# Samples come from white noise, level by level, each given its own context.  A context far from all that were trained
# gives a warning and a flag in the result, `is_far`.

# %%
again = 6.0 * torch.rand(1500) - 3.0
drawn = ebm.given(again[:, None]).sample()
clouds = {"rows": torch.stack([context, y[:, 0]], -1)[:1500], "samples": torch.stack([again, drawn[:, 0]], -1)}
plots.show(plots.scatter_panels(clouds, title="Rows and samples", labels=("context c", "y")), "12_samples")
print("far:", ebm.given_unchecked(torch.tensor([[0.0], [9.0]])).is_far.tolist())

# %% [markdown]
# The model is one of Pyro's conditional distributions too, so it goes into a model with a plate of rows, and whatever
# Pyro does with sites works: `Predictive` draws, `obs=` scores, and a context may be a latent site (tutorial 14).


# %%
def regression(c: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    with pyro.plate("rows", len(c)):
        site: torch.Tensor = pyro.sample("y", ebm.condition(c), obs=y)
    return site


held_out = 6.0 * torch.rand(200, 1) - 3.0
draws = Predictive(regression, num_samples=5)(held_out)["y"]
score = pyro.poutine.trace(regression).get_trace(held_out, draw(held_out[:, 0])).log_prob_sum()
print(f"{tuple(draws.shape)} draws; {float(score.detach()) / len(held_out):.2f} nats for each held-out row")

# %% [markdown]
# ## Progression of a disease, with intervals
#
# 442 patients are few, so the network is small; rows are split into three: to train on, to choose the weights by, and
# to judge by once.

# %%
study = load_diabetes(scaled=False)
measured = torch.as_tensor(study.data, dtype=torch.float32)
progression = torch.as_tensor(study.target, dtype=torch.float32)[:, None]
order = torch.randperm(len(measured), generator=torch.Generator().manual_seed(0))
test, valid, train = order[:88], order[88:132], order[132:]
patients = ep.models.ConditionalEBM(ep.MLPEnergy(1, hidden=64, depth=2, context_shape=10), schedule)
ep.fit(
    patients,
    (progression[train], measured[train]),
    held_out=(progression[valid], measured[valid]),
    steps=STEPS // 3,
    progress=False,
)
p = patients.given_unchecked(measured[test])
low, high = p.interval(0.9)
with torch.no_grad():
    log_likelihood = p.log_prob(patients.diffuse(progression[test], 0))
inside = (progression[test, 0] > low) & (progression[test, 0] < high)
print(
    f"{len(test)} patients: {float(log_likelihood.mean()):.2f} nats each, 90 % intervals cover "
    f"{float(inside.float().mean()):.0%}, {int(p.is_far.sum())} lie far from those of the training"
)
middle = p.quantiles(torch.tensor(0.5))
ends = {
    "target": torch.stack([middle, progression[test, 0]], -1),
    "width of the 90 % interval": torch.stack([middle, high - low], -1),
}
figure = plots.scatter_panels(ends, title="Progression of held-out patients", labels=("median", "progression"))
plots.show(figure, "12_intervals")

# %% [markdown]
# The intervals hold fewer rows than they promise: with 310 rows to learn from a network believes too much.  So look at
# the coverage of held-out rows before you use an interval.
#
# Of a table in a file the command line does the same, whatever its columns are: `energyppl fit table.csv --predict
# price --out RUN` learns p(price | rest) and says how well, coverage included, and `energyppl predict RUN table.csv
# --out predictions.csv` writes means and intervals (`ep.tables.fit_conditional` in Python).

# %% [markdown]
# One patient's density, beside the same patient with another body mass: what the model says of a change of one number,
# all others being equal.

# %%
one = measured[test[:1]].repeat(5, 1)
one[:, 2] = torch.tensor([20.0, 24.0, 28.0, 32.0, 36.0])  # body mass index
grid = torch.linspace(0.0, 400.0, 201)
with torch.no_grad():
    densities = patients.given_unchecked(one).log_prob(grid[:, None, None].expand(-1, 5, 1)).exp()
named = {f"body mass index {int(mass)}": (grid, densities[:, i]) for i, mass in enumerate(one[:, 2])}
labels = ("progression", "density")
plots.show(plots.line_plot(named, title="One patient, with five body masses", labels=labels), "12_patient")

# %% [markdown]
# ## A context that is an image, and guidance
#
# A context may be anything that an `encoder` turns into numbers; the encoder is trained with the energy.  Here it sees
# the upper half of a handwritten digit, and two numbers are asked for: how dark the lower half is, and where its ink
# lies from left to right.  Of two numbers and more log Z is what training implies, for every image alike.
#
# `label_drop=0.1` hides the contexts in a tenth of the updates.  So the energy without a context is learned too, and
# `guidance=w` samples `(1 + w) U(y; c) − w U(y)`: what is typical of this context rather than of all.

# %%
pictures = torch.as_tensor(load_digits().images, dtype=torch.float32) / 16.0
upper, lower = pictures[:, None, :4], pictures[:, 4:]
ink = lower.sum((1, 2)) + 1e-3
summary = torch.stack([ink / 32.0, (lower.sum(1) * torch.arange(8.0)).sum(1) / ink], -1)
order = torch.randperm(len(summary), generator=torch.Generator().manual_seed(0))
test, valid, train = order[:300], order[300:450], order[450:]
encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(16 * 32, 16))
halves = ep.models.ConditionalEBM(
    ep.MLPEnergy(2, hidden=64, depth=2, context_shape=16), schedule, context_shape=(1, 4, 8), encoder=encoder
)
ep.fit(
    halves,
    (summary[train], upper[train]),
    held_out=(summary[valid], upper[valid]),
    options=ep.TrainingOptions(steps=STEPS // 3, batch_size=256, ema=0.995, evaluate_every=50, label_drop=0.1),
    progress=False,
)
noisy = halves.diffuse(summary[test], 0)
with torch.no_grad():
    own = halves.given_unchecked(upper[test]).log_prob(noisy)
    others = halves.given_unchecked(upper[test].roll(1, 0)).log_prob(noisy)
print(f"the upper half says {float((own - others).mean()):.2f} nats more of its own lower half than another's does")
for weight in (0.0, 1.0, 3.0):
    drawn = halves.given(upper[test[:4]], guidance=weight).sample((100,))
    print(f"guidance {weight:g}: standard deviations of four images' draws", drawn.std(0).mean(0).numpy().round(3))

# %% [markdown]
# ## Exercises
#
# 1. Train the two modes on contexts between −1 and 1 only. At which contexts is `is_far` set, and how wrong is the
#    density at c = 2?
# 2. Train the patients' model without `held_out`, for all `STEPS` updates. How many targets do the intervals hold now?
# 3. Give the patients' model nothing but the body mass. How many nats each do the other nine measurements add?
