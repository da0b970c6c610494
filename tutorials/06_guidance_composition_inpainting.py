# %% [markdown]
# # Classes, guidance, composition and inpainting: algebra on energies
#
# Energies add.  A class is another energy of the same network, guidance a difference of two, a composition a sum, and a
# measurement one more term.  The data are scikit-learn's 8 × 8 digits.
#
# It takes about three minutes; smaller numbers in the first cell make it shorter.

# %%
import pyro
import torch
from sklearn.datasets import load_digits

import energyppl as ep
from energyppl import plots
from energyppl.plots.images import image_strips

STEPS = 2000  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## A class-conditional model
#
# Grey values 0 to 16 are spread over their gaps.  A tenth of the labels is hidden at each update, so the network learns
# the energy without a class too, which guidance needs.

# %%
digits = load_digits()
labels = torch.as_tensor(digits.target).long()
x = torch.as_tensor(digits.images, dtype=torch.float32).reshape(-1, 1, 8, 8)
x = (x + torch.rand_like(x)) / 17.0
sizes = {"levels": 6, "classes": 10, "hidden": 256}
initializer = ep.MLPInitializer((1, 8, 8), learn_scale=True, **sizes)
schedule = ep.NoiseSchedule.cosine(6, log_snr_max=5.0)
ebm = ep.RecoveryEBM(ep.MLPEnergy((1, 8, 8), **sizes), schedule, initializer=initializer)
ebm.standardize(x[:1400], isotropic=True)
objective = ep.CooperativeRecovery()
options = ep.TrainingOptions(steps=STEPS, batch_size=256)
ep.fit(ebm, x[:1400], objective, labels=labels[:1400], options=options, progress=False)
asked = torch.arange(10)
titles = [str(i) for i in range(10)]
rows = {"data": torch.stack([x[labels == c][0] for c in range(10)]), "no class": ebm.sample((10,), denoise=True)}
plots.show(image_strips(rows, titles=[""] * 10, title="Digits and free samples"), "06_samples")

# %% [markdown]
# ## Guidance
#
# `ebm.given(label, guidance=w)` is a model like any other, with energy (1 + w) U(x | c) − w U(x).  More guidance makes
# digits clearer and more alike.

# %%
rows = {
    f"w = {w}": ebm.given(asked, guidance=w).sample((10,), steps=20, denoise=True) for w in (0.0, 0.5, 1.0, 2.0, 4.0)
}
plots.show(image_strips(rows, titles=titles, title="Asked for 0 to 9"), "06_guidance")

# %% [markdown]
# ## Composition
#
# `product` adds energies, with weights: what two classes agree on, or one but not another.  `mixture` is one or the
# other.  Each row of the picture shows ten draws of one of them, with a guidance of 2.

# %%
three, eight = ebm.given(3, guidance=2.0), ebm.given(8, guidance=2.0)
rows = {
    "3": three.sample((10,), denoise=True),
    "3 and 8": ep.product(three, eight, weights=[0.5, 0.5]).sample((10,), denoise=True),
    "8, not 3": ep.product(eight, three, weights=[1.5, -0.5]).sample((10,), denoise=True),
    "3 or 8": ep.mixture(three, eight).sample((10,), denoise=True),
}
plots.show(image_strips(rows, titles=[""] * 10, title="Ten draws of each combination"), "06_composition")

# %% [markdown]
# ## Inpainting and deblurring
#
# A `LinearMeasurement` is a term at every level; at level 0 it is the likelihood itself, so chains that go on there are
# draws of a posterior that can be checked.  Samples come down the levels, then MALA (Langevin steps that are accepted
# or rejected) moves them at level 0.


# %%
def posterior(measurement: ep.LinearMeasurement, count: int = 9) -> torch.Tensor:
    model = ep.measured(ebm, measurement)
    start = model.sample((count,), steps=20)
    tuned = ep.adapt(ep.MALA(0.01), model.marginal().potential, start, 200)
    return ep.sampling.run_chain(tuned.kernel, model.marginal().potential, tuned.state.x, 300).state.x


whole = x[1500]
seen = torch.zeros(1, 8, 8, dtype=torch.bool)
seen[:, :4] = True
measured = ep.LinearMeasurement.mask(whole, seen, noise=0.05)
drawn = posterior(measured)
error = (drawn - whole)[:, seen].square().mean().sqrt()
print(
    f"seen pixels: off by {float(error):.3f} (noise 0.05); unseen ones vary by {float(drawn.std(0)[~seen].mean()):.3f}"
)
shown = [whole, torch.where(seen, whole, 0.0), *drawn]
names = ["truth", "seen", *(f"draw {i}" for i in range(1, 10))]
plots.show(image_strips({"": shown}, titles=names, title="The lower half of a digit"), "06_inpainting")

pixels = torch.eye(64).reshape(64, 1, 8, 8)
blur = torch.nn.functional.avg_pool2d(pixels, 2).reshape(64, 16).T  # (16, 64): a quarter of the resolution
observed = blur @ whole.flatten()
coarse = observed.reshape(1, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
shown = [whole, coarse, *posterior(ep.LinearMeasurement(blur, observed, noise=0.05))]
names[1] = "measured"
plots.show(image_strips({"": shown}, titles=names, title="From a quarter of the pixels"), "06_downsampling")

# %% [markdown]
# ## Exercises
#
# 1. Ask for `ep.product(three, eight, weights=[1.0, 1.0])` with more and with less total weight. What do weights do?
# 2. Hide the left half of the digit in place of the lower one, or every second pixel.
# 3. Combine a class with a measurement: `ep.measured(ebm.given(3), measured)`.
