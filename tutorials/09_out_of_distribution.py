# %% [markdown]
# # Out-of-distribution detection
#
# An energy is an out-of-distribution score that needs no labels and no normalizing constant.  Four models learn
# scikit-learn's 8 × 8 digits; each then ranks held-out digits among things that are no digits.
#
# It takes about three minutes on one core; smaller numbers in the first cell make it shorter.

# %%
import pyro
import torch
from sklearn.datasets import load_digits

import energyppl as ep
from energyppl import plots
from energyppl.plots.detection import score_histograms
from energyppl.plots.images import image_strips

STEPS = 1000  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Digits, and what is not
#
# Every set is made of held-out digits, so that it differs from them by the change alone: upside down, pixels shuffled
# by one permutation, halves of two digits, the mean of two, and white noise with the pixels' own mean and spread.

# %%
x = torch.as_tensor(load_digits().images, dtype=torch.float32).reshape(-1, 1, 8, 8)
x = ((x + torch.rand_like(x)) / 17.0)[torch.randperm(len(x))]
training, held_out = x[:1400], x[1400:]
other = held_out.flip(0)
sets = {
    "upside down": held_out.flip(2),
    "shuffled": held_out.flatten(1)[:, torch.randperm(64)].reshape(held_out.shape),
    "two halves": torch.cat([held_out[:, :, :4], other[:, :, 4:]], 2),
    "mean of two": 0.5 * (held_out + other),
    "noise": (training.mean() + training.std() * torch.randn_like(held_out)).clamp(0.0, 1.0),
    "grey": torch.rand(len(held_out), 1, 1, 1).expand_as(held_out) + torch.rand_like(held_out) / 17.0,
}
rows = {"digits": held_out[:8], **{name: images[:8] for name, images in sets.items()}}
titles = [str(i) for i in range(1, 9)]
plots.show(image_strips(rows, titles=titles, title="Digits, and what is not"), "09_sets")

# %% [markdown]
# ## Four models
#
# Recovery likelihood (DRL), a joint energy over noise levels (DA-EBM), persistent contrastive divergence without
# levels, and multi-scale score matching (MDSM), each with a perceptron of one size and as many updates.


# %%
def net(levels: int = 1) -> ep.MLPEnergy:
    return ep.MLPEnergy((1, 8, 8), hidden=256, levels=levels)


schedule = ep.NoiseSchedule.cosine(6, log_snr_max=5.0)
sigmas = torch.logspace(0.7, -0.7, 32)
models = {
    "recovery": ep.RecoveryEBM(net(6), schedule),
    "joint": ep.JointEBM(net(7), schedule),
    "persistent": ep.EBM(net()),
    "multi-scale": ep.MultiscaleEBM(net(), sigmas, base_sigma=0.4),
}
for name, model in models.items():
    model.standardize(training, isotropic=True)
    history = ep.fit(model, training, options=ep.TrainingOptions(steps=STEPS, batch_size=128), progress=False)
    print(f"{name}: {history.stopped}")

# %% [markdown]
# ## Energies as scores
#
# AUROC is the probability that a strange point scores above a digit; the interval is bootstrapped from both sets.

# %%
for name, model in models.items():
    known = ep.evaluation.energy_scores(model, held_out)
    for kind, images in sets.items():
        report = ep.evaluation.detection_report(known, ep.evaluation.energy_scores(model, images), repeats=200)
        print(f"{name:12} {kind:12} {report}")
    scores = {"digits": known, **{kind: ep.evaluation.energy_scores(model, images) for kind, images in sets.items()}}
    figure = score_histograms(scores, title=f"Energies of the {name} model", inlier="digits")
    plots.show(figure, f"09_{name.replace('-', '_')}")

# %% [markdown]
# ## Other scores of one model
#
# The mean of two digits is smoother than a digit, and most of these models find it *less* strange: being likely is not
# being typical (Nalisnick et al. 2019).  Typicality looks at the distance from the usual energy, the gradient's norm at
# whether chains would stay, and a ratio at what a mixture of Gaussians finds strange as well.  None of them helps here,
# and two of them miss much that the energy finds: a score is a choice to be checked, not a certainty.

# %%
ebm = models["recovery"]
base = ep.potentials.MixtureBase.fitted(training, training.shape[1:])
others = {
    "energy": lambda images: ep.evaluation.energy_scores(ebm, images),
    "gradient": lambda images: ep.evaluation.gradient_scores(ebm, images),
    "typicality": lambda images: ep.evaluation.typicality_scores(ebm, images, training),
    "ratio": lambda images: ep.evaluation.ratio_scores(ebm, images, base),
}
print("AUROC       " + " ".join(f"{kind:>12}" for kind in sets))
for name, score in others.items():
    values = [ep.evaluation.auroc(score(held_out), score(images)).value for images in sets.values()]
    print(f"{name:12}" + " ".join(f"{value:12.3f}" for value in values))

# %% [markdown]
# ## Exercises
#
# 1. Add digits with one pixel set to white. Which model finds them, by which score?
# 2. Replace the energy by `ep.evaluation.gradient_scores` for every model. For which one does the ranking change?
