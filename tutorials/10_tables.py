# %% [markdown]
# # Tables: densities above two dimensions
#
# Eleven columns of scikit-learn's diabetes study: a density is trained by score matching tied across noise levels,
# normalized with an error, compared with a mixture of Gaussians on rows that neither has seen, sampled, and asked for
# its least likely rows.
#
# It takes about a minute and a half on one core; smaller numbers in the first cell make it shorter.

# %%
import numpy as np
import pyro
import torch
from sklearn.datasets import load_diabetes
from sklearn.mixture import GaussianMixture

import energyppl as ep
from energyppl import plots

STEPS = 2000  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## The table
#
# A density needs columns that vary continuously: `dequantize` spreads the values of discrete columns (sex, age, counts)
# uniformly over their gaps.  Rows are split into three: to train on, to choose the weights by, and to judge by once.

# %%
study = load_diabetes(scaled=False)
columns = (*study.feature_names, "progression")
table = ep.data.table_from_array(np.column_stack([study.data, study.target]), columns)
values = torch.as_tensor(ep.data.dequantize(table, torch.Generator().manual_seed(0)).values, dtype=torch.float32)
print({name: gap for name, gap in zip(table.columns, table.discrete, strict=True) if gap})
order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
test, valid, train = values[order[:44]], values[order[44:88]], values[order[88:]]

# %% [markdown]
# ## A network that is continuous in the noise level
#
# Above two dimensions `MLPEnergy` has sines and cosines of each column, and a noise level that varies continuously; its
# noisiest level is a known Gaussian by construction.  `fit` then trains it by `LevelScoreMatching`: the scores shape
# the density, and a *level tie*, the score in the direction of the noise level, carries the known normalizer of the
# noisiest level down to the data.  Level 0 has noise of a tenth of each column's standard deviation.

# %%
ebm = ep.RecoveryEBM(ep.MLPEnergy(train.shape[1:]), ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0))
history = ep.fit(ebm, train, held_out=valid, steps=STEPS, progress=False)
print(history)
measure = history.column("held_out")
steps = np.flatnonzero(np.isfinite(measure))
curves = {
    "denoising error": (np.arange(len(measure)), history.column("denoising")),
    "held-out nats for each row": (steps, measure[steps]),
}
plots.show(plots.training_curves(curves, title="Training"), "10_training")

# %% [markdown]
# ## Likelihood, with the error of log Z
#
# The energy is about normalized by training: `implied_log_prob` takes log Z to be 0 and costs one evaluation.  What
# should be reported is `log_prob`: its log Z is estimated by annealing, several runs forward beside a bridge, and comes
# with an interval and with a sentence if the estimates disagree.

# %%
log_z = ebm.log_normalizer()
print(log_z)
plots.show(plots.log_weight_histogram(log_z, title="Runs forward and back"), "10_log_weights")
noisy = ebm.diffuse(test, 0)
likelihood = ep.evaluation.mean_log_likelihood(ebm.marginal(), noisy, log_z)
implied = float(ebm.implied_log_prob(noisy).mean().detach())
print(f"log likelihood of {len(test)} test rows: {likelihood}; implied: {implied:.2f}")

# %% [markdown]
# A mixture of Gaussians, its number of components chosen on the same validation rows, sees the same noise.  354 rows
# are few for a network, and this table is nearly Gaussian: the mixture wins here.  `python -m tests.benchmarks
# likelihood` compares both, and a spline flow, on tables with more rows.

# %%
unit = ebm.to_unit(ebm.diffuse(train.repeat(4, 1), 0)).numpy()
mixtures = [GaussianMixture(k, reg_covar=1e-4, random_state=0).fit(unit) for k in (1, 2, 3, 5, 8)]
valid_unit = ebm.to_unit(ebm.diffuse(valid.repeat(4, 1), 0)).numpy()
best = max(mixtures, key=lambda mixture: mixture.score(valid_unit))
of_mixture = best.score_samples(ebm.to_unit(noisy).numpy()) - float(ebm.scale.log().sum())
with torch.no_grad():
    own = (ebm.implied_log_prob(noisy) - log_z.estimate + float(ebm.scale.log().sum())).double().numpy()
difference = own - of_mixture
print(
    f"{best.n_components} Gaussians: {of_mixture.mean():.2f}; the energy is above by {difference.mean():+.2f} ± "
    f"{difference.std() / np.sqrt(len(difference)):.2f} nats on the same rows"
)

# %% [markdown]
# ## Samples
#
# From white noise, level by level; then rounded to the values that discrete columns have.

# %%
samples = ebm.sample((1000,))
found = ep.metrics.energy_distance_test(ebm.to_unit(samples), ebm.to_unit(ebm.diffuse(train, 0)))
print(f"two-sample test of samples against training rows: p = {found.p_value:.3f}")
rounded = ep.data.requantize(samples.numpy(), table.grids)
some = [columns.index(name) for name in ("age", "bmi", "bp", "s5", "progression")]
names = [columns[i] for i in some]
plots.show(plots.pair_plot(train[:, some], rounded[: len(train), some], names, title="Rows and samples"), "10_pairs")

# %% [markdown]
# ## The least likely rows
#
# Scores are energies at level 0; a row with three columns of another patient is stranger than the row was.

# %%
mixed = test.clone()
mixed[:, some[1:4]] = mixed[torch.randperm(len(mixed))][:, some[1:4]]
scores = {
    name: ep.evaluation.energy_scores(ebm, x) for name, x in {"test rows": test, "three columns mixed": mixed}.items()
}
print(f"AUROC: {ep.evaluation.auroc(scores['test rows'], scores['three columns mixed'])}")
plots.show(plots.score_histograms(scores, title="Energies"), "10_scores")
strangest = int(scores["test rows"].argmax())
print("the strangest test row:", {n: round(float(v), 2) for n, v in zip(columns, test[strangest], strict=True)})

# %% [markdown]
# ## A finer noise schedule
#
# The network is continuous in the noise level, so another noise schedule can be used without training anew.

# %%
finer = ep.RecoveryEBM(ebm.net, ep.NoiseSchedule.cosine(60, log_snr_max=4.6, log_snr_min=-6.0))
finer.standardize(train)
finer.tune(train)
fine, fresh = (finer.to_unit(x) for x in (finer.sample((1000,), steps=20), finer.diffuse(train, 0)))
print(f"samples over 60 levels: p = {ep.metrics.energy_distance_test(fine, fresh).p_value:.3f}")
levels = {"data": ebm.to_unit(ebm.diffuse(train, 0))[:, some[1:3]]}
for level in (5, 10, 19):
    levels[f"level {level}"] = ebm.to_unit(ebm.diffuse(train, level))[:, some[1:3]]
title = "bmi and bp in standard deviations, noisier and noisier"
plots.show(plots.scatter_panels(levels, title=title, labels=("bmi", "bp")), "10_levels")

# %% [markdown]
# ## Exercises
#
# 1. Leave out `dequantize`. What does training make of the column of two values?
# 2. Choose the number of Gaussians on the test rows. By how much does the comparison flatter them?
# 3. Run `energyppl fit` on a table of yours, and compare its verdict with your own.
