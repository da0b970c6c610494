# %% [markdown]
# # Normalizing constants: from quadrature to annealing to the bridge, and when not to believe them
#
# An energy gives a density up to a constant, p(x) = exp(−U(x)) / Z.  Likelihoods and model comparison need log Z, and
# an error bar that holds.
#
# It takes about a minute on one core; smaller numbers in the first cell make it shorter.

# %%
import math
import warnings

import pyro
import torch

import energyppl as ep
from energyppl import plots

STEPS = 1000  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Quadrature in two dimensions
#
# `quadrature` integrates exp(−U) on a grid and says how far off it may be.  Here the truth is 0.

# %%
rings = ep.toys.Rings()
exact = ep.quadrature(rings, ep.Grid.around(rings.sample((5000,)), margin=1.0))
print(f"by quadrature: {exact.log_normalizer:+.5f} ± {exact.error:.1g}, {exact.evaluations:,} evaluations\n")

# %% [markdown]
# ## Annealing needs no grid
#
# Particles go from a Gaussian, the *base*, whose log Z is known, to the target through densities in between, the
# *temperatures*, and their weights average to Z: sequential Monte Carlo (SMC), the default without samples.  With draws
# of the target (here exact ones, for a trained model its own) runs go in both directions, and Bennett's acceptance
# ratio (BAR) makes one estimate of both, the *bridge*.  Forward runs by themselves are too low on average and reverse
# runs too high: these are the bounds that are printed beside the interval.

# %%
wide = ep.potentials.GaussianBase(torch.zeros(2), 3.0 * torch.ones(2))
forward = ep.log_normalizer(rings, base=wide)
bridge = ep.log_normalizer(rings, samples=rings.sample((2048,)))
print(forward, bridge, sep="\n")
plots.show(plots.log_weight_histogram(bridge, title="Forward and reverse runs cross at log Z", log_z=0.0), "04_weights")
plots.show(plots.temperature_plot(forward, title="Temperatures of the forward run"), "04_temperatures")

# %% [markdown]
# Longer runs bring the bounds together.  Each interval holds the truth with a probability of 95 %, so of the eight in
# the picture one may well miss it.  `tolerance` goes on until the interval is as narrow as you ask.

# %%
budgets: dict[str, list[ep.LogNormalizer]] = {"a plain Gaussian base": [], "a base fitted to samples": []}
for temperatures in (4, 16, 64, 256):
    plain = ep.log_normalizer(
        rings, base=wide, samples=rings.sample((512,)), method=ep.normalizing.BAR(256, temperatures=temperatures)
    )
    budgets["a plain Gaussian base"].append(plain)
    fitted = ep.log_normalizer(
        rings, samples=rings.sample((1024,)), method=ep.normalizing.BAR(256, temperatures=temperatures)
    )
    budgets["a base fitted to samples"].append(fitted)
plots.show(plots.gap_plot(budgets, title="Bounds and intervals as temperatures are added", log_z=0.0), "04_gap")
narrow = ep.log_normalizer(rings, samples=lambda n: rings.sample((n,)), tolerance=0.01)
print(f"\nto ± .01: {narrow}")

# %% [markdown]
# ## What a missed mode looks like
#
# Two modes in twenty dimensions.  Runs that begin in the middle of one of them find only that one, and nothing in them
# shows it: the interval is narrow and wrong by log ½.  Reverse runs from draws of the target do show it.

# %%
modes = ep.toys.IsotropicMixture(torch.stack([torch.zeros(20), torch.full((20,), 3.0)]), 0.5)
inside = ep.potentials.GaussianBase(torch.zeros(20), 0.7 * torch.ones(20))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # they are printed
    missed = ep.log_normalizer(modes, base=inside)
    seen = ep.log_normalizer(modes, base=inside, samples=modes.sample((512,)))
print(f"\nforward alone: {missed}\nboth ways: {seen}")
print(f"a base fitted to the samples: {ep.log_normalizer(modes, samples=modes.sample((2048,)))}")
plots.show(
    plots.log_weight_histogram(seen, title="Half of the samples lie where no forward run comes", log_z=0.0), "04_missed"
)

# %% [markdown]
# ## An energy that can't be normalized is refused
#
# Networks without a confining term often have none.

# %%
try:
    ep.log_normalizer(ep.Energy(lambda x: torch.nn.functional.softplus(x[..., 0]), torch.Size((2,))))
except ep.errors.NotNormalizable as error:
    print(f"\nrefused: {error}")

# %% [markdown]
# ## A trained model, in nats and in bits per dimension
#
# The data were rounded to a tenth and then dequantized: uniform noise spreads each value over its cell (Theis, van den
# Oord & Bethge 2016). The log density of the dequantized data bounds the log probability of the rounded ones from
# below. The error of log Z is carried along.

# %%
toy, gap = ep.toys.TwoMoons(), 0.1


def rounded(count: int) -> torch.Tensor:
    return gap * (toy.sample((count,)) / gap).round()


def spread(x: torch.Tensor) -> torch.Tensor:
    return x + gap * (torch.rand_like(x) - 0.5)


ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=6))
ep.fit(ebm, spread(rounded(20_000)), options=ep.TrainingOptions(steps=STEPS), progress=False)
by_grid = ebm.log_normalizer()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    by_levels = ebm.log_normalizer(method=ep.normalizing.BAR(2048))
print(f"\nby quadrature: {by_grid.estimate:.4f}; annealed through the model's levels: {by_levels}")
held_out = ebm.diffuse(spread(rounded(5_000)), 0)
likelihood = ep.evaluation.mean_log_likelihood(ebm.marginal(), held_out, by_levels)
bits = ep.evaluation.bits_per_dimension(likelihood, (2,), gap=gap)
print(f"held-out log-likelihood {likelihood} nats, of which log Z {likelihood.from_log_z:.2g}; {bits} bits/dimension")
process = ep.normalizing.process_log_likelihood(ebm, held_out[:500])
print(f"the sampling process: between {process.lower} and {process.upper} nats")
plots.show(
    plots.log_weight_histogram(by_levels, title="A trained model, annealed through its noise levels"), "04_model"
)

# %% [markdown] Points out of distribution have a low density, whatever log Z is. The AUROC is the probability that the
# energy of such a point is above that of a point of the data; 0.5 is chance.

# %%
strangers = held_out + torch.tensor([0.0, 1.0])
print(f"AUROC of moons pushed upwards: {ep.evaluation.auroc(-ebm.log_prob(held_out), -ebm.log_prob(strangers))}")
assert math.isfinite(bits.value)

# %% [markdown]
# On a table of your own: `energyppl logz run`, and `energyppl score run table.csv` for the rows, outliers first.

# %% [markdown]
# ## Exercises
#
# 1. Halve the particles of `bridge`. By how much do the interval and the bounds widen?
# 2. Move the second of the two modes to 1.0 in every coordinate. From where on do runs from the first one find it?
# 3. For which functions of `x` in place of `softplus` is the energy normalizable? Ask `log_normalizer`.
