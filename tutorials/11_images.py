# %% [markdown]
# # Images: digits by score matching, and what one energy is good for
#
# scikit-learn's 8 × 8 digits: an energy is trained at all noise levels at once, draws digits with its own denoiser,
# each class as asked, goes from one digit to another, cleans noisy ones, completes half ones, and keeps long chains.
#
# It takes about two minutes on one core; smaller numbers in the first cell make it shorter.
#
# With MNIST's file `python -m tests.benchmarks images MNIST.npz` does the same at 28 × 28, and with a folder of
# pictures of your own `energyppl fit FOLDER --out RUN`.

# %%
import numpy as np
import pyro
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import energyppl as ep
from energyppl import plots

STEPS = 4000  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## An energy of images
#
# `UNetEnergy` turns patches of 2 × 2 pixels into channels and returns one number, the energy, at a noise level that
# varies continuously.  On images `fit` trains it by `LevelScoreMatching`, weighted so that the noisy levels, where
# outlines are decided, count for more than the likelihood asks.  Half of the labels are hidden, so that the energy
# without a class is learned too.

# %%
digits = load_digits()
images = ep.data.images_from_array(digits.images.astype(np.uint8), digits.target, value_range=(0, 16))
assert images.labels is not None
order = torch.randperm(len(images.x), generator=torch.Generator().manual_seed(0))
x, y = images.x[order], images.labels[order]
train, held_out, test = slice(0, 1400), slice(1400, 1600), slice(1600, None)

net = ep.models.UNetEnergy((1, 8, 8), classes=10)
ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels=30, log_snr_max=5.0, log_snr_min=-6.0))
ebm.standardize(x[train], isotropic=True)  # one scale: corners are black in every digit
history = ep.fit(ebm, x[train], labels=y[train], held_out=x[held_out], steps=STEPS, progress=False)
print(history)
measure = history.column("held_out")
steps = np.flatnonzero(np.isfinite(measure))
curves = {
    "denoising error": (np.arange(len(measure)), history.column("denoising")),
    "held out, weighted": (steps, measure[steps]),
}
plots.show(plots.training_curves(curves, title="Training"), "11_training")

# %% [markdown]
# ## Samples
#
# The gradient of the energy at a noisy image gives the mean of the clean image behind it (Tweedie's formula), clamped
# to the range of the data.  From there and from the noisy image, the image one level below is drawn: one gradient a
# level, and no second network.  `steps=1` adds a corrected move at each level, at three times the cost.

# %%
made = ebm.generate((8,), denoise=True)
print(f"{made.evaluations} gradients a sample")
stages = [0, 8, 14, 18, 22, 26, 30]
shown = [*(made.path[stage] for stage in stages), made.x]
strips = {str(i): [ebm.from_unit(stage[i]) for stage in shown] for i in range(8)}
titles = ["noise", *(f"level {30 - stage}" for stage in stages[1:]), "denoised"]
plots.show(plots.image_strips(strips, titles=titles, title="From noise to digits"), "11_path")

# %% [markdown]
# ## Classes and guidance
#
# `ebm.given(labels, guidance=w)` asks for classes, `(1 + w) U(x | c) − w U(x)`.  A logistic regression on real digits
# says how many are what was asked for; guidance makes digits clearer and more alike.

# %%
judge = LogisticRegression(max_iter=2000).fit(x[train].flatten(1).numpy(), y[train].numpy())
real = judge.score(x[test].flatten(1).numpy(), y[test].numpy())
asked, rows = torch.arange(200) % 10, {"data": [x[y == c][0] for c in range(10)]}
for weight in (0.0, 1.0, 3.0):
    drawn = ebm.given(asked, guidance=weight).sample((200,), denoise=True)
    right = judge.score(drawn.flatten(1).numpy(), asked.numpy())
    spread = torch.stack([drawn[asked == c].std(0).mean() for c in range(10)]).mean()
    print(f"guidance {weight:g}: {right:.3f} as asked (real digits {real:.3f}), pixels of a class vary by {spread:.3f}")
    rows[f"w = {weight:g}"] = list(drawn[:10])
    rows[f"w = {weight:g} "] = list(drawn[10:20])
figure = plots.image_strips(rows, titles=[str(c) for c in range(10)], title="Digits asked for")
plots.show(figure, "11_guidance")

# %% [markdown]
# Do samples repeat training images?  If they did, they would lie nearer to them than digits that were never seen.

# %%
samples = ebm.sample((200,), denoise=True)
found = ep.metrics.memorized(samples, x[train], x[test])
print(
    f"median distance to a training image: samples {found.sample_median:.3f}, test digits {found.held_out_median:.3f}"
)
nearest = x[train][ep.metrics.nearest_neighbours(samples[:8], x[train], k=3).indices]
plots.show(plots.neighbour_grid(samples[:8], nearest, title="Nearest"), "11_neighbours")

# %% [markdown]
# ## From one digit to another
#
# Both are noised with the same noise, mixed, and brought down again with the same noise at every step.  At noisier
# levels the ends are other digits than those that went in, at sharper ones the middle is a mere overlay.

# %%
one, other = (torch.stack([x[test][y[test] == c][0] for c in classes]) for classes in ((0, 3, 7, 1), (6, 8, 2, 4)))
path = ep.models.interpolate(ebm, one, other, count=7, level=14)
strips = {str(i): [one[i], *path[:, i], other[i]] for i in range(len(one))}
titles = ["one", *(str(i) for i in range(1, 8)), "other"]
figure = plots.image_strips(strips, titles=titles, title="Through the noise levels")
plots.show(figure, "11_interpolation")

# %% [markdown]
# ## Denoising and completing
#
# `ebm.denoised` is the mean of all digits that a noisy one could be: sharp where it is known, grey where it is not.
# Draws of a posterior are sharp everywhere and differ.  Here the upper half of a digit was seen.

# %%
levels = [5, 10, 15, 20]
strips = {}
for i in range(3):
    noisy = [ebm.diffuse(x[test][i], level) for level in levels]
    strips[f"noisy {i}"] = [x[test][i], *noisy]
    strips[f"mean {i}"] = [x[test][i], *(ebm.denoised(z, level) for z, level in zip(noisy, levels, strict=True))]
figure = plots.image_strips(strips, titles=["digit", *(f"level {level}" for level in levels)], title="Denoised")
plots.show(figure, "11_denoised")

seen = torch.zeros(1, 8, 8, dtype=torch.bool)
seen[:, :4] = True
strips = {}
for i in range(4):
    whole = x[test][i]
    posterior = ep.measured(ebm, ep.LinearMeasurement.mask(whole, seen, noise=0.02))
    draws = posterior.sample((6,), denoise=True)
    misfit = (draws - whole)[..., :4, :].square().mean().sqrt()
    print(f"digit {int(y[test][i])}: the half that was seen is met within {misfit:.3f}")
    strips[str(i)] = [whole, whole * seen, *draws]
figure = plots.image_strips(strips, titles=["digit", "seen", *(f"draw {i}" for i in range(1, 7))], title="Completed")
plots.show(figure, "11_completed")

# %% [markdown]
# ## Chains that stay
#
# An energy says more than a sampler: Markov chains on it must stay where the data are.  These begin at test digits with
# the noise of level 0; `drift` compares the mean energy of the end with that of the beginning.  Score matching leaves
# work to do here: the energy falls by some 40 nats, and digits grow into others.

# %%
run = ep.long_run(ebm, x[test], steps=1000, kept=20, chains=20, progress=False)
drift = run.from_data.drift
print(f"energy {drift.first:.1f} to {drift.last:.1f} nats; {'; '.join(run.problems) or 'no problems'}")
chains = run.from_data.chains.draws
strips = {str(i): [ebm.denoised(chain[k], 0) for k in (0, 6, 13, 19)] for i, chain in enumerate(chains[:6])}
titles = ["early", "a third", "two thirds", "end"]
plots.show(plots.image_strips(strips, titles=titles, title="Long chains"), "11_chains")

# %% [markdown]
# ## Exercises
#
# 1. Interpolate at `level=6` and at `level=22`. Which ends are still the digits that went in, and which middles are a
#    mere overlay?
# 2. Hide the left half of a digit, or every second pixel, in place of the lower half. Where do the draws differ most?
# 3. Train for a quarter of the steps. Which suffers first: digits as asked, distances to training images, or the drift
#    of the long chains?
