# %% [markdown]
# # Learned priors of latent variables, energies with a known physical term, and calibration
#
# An energy can be a part of a larger model: the prior of a decoder's latents, the prior of an image of which only a
# blurred and noisy picture is known, a correction of a physical law, or a factor beside a constraint.  This tutorial
# builds each in a few lines of Pyro, and ends with a check that the chains on such posteriors can be trusted.
#
# It takes about two minutes on one core; smaller numbers in the first cell make it shorter.

# %%
import math
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import Tensor, nn

import energyppl as ep
from energyppl import plots

STEPS = 800  # updates of training
pyro.set_rng_seed(0)
torch.set_num_threads(1)
# What is to be said of chains and of log Z is printed where it belongs in the text.
warnings.simplefilter("ignore", ep.errors.ChainWarning)
warnings.filterwarnings("ignore", message="log Z: ")

# %% [markdown]
# ## A latent-space energy-based model of digits
#
# `z ~ exp(−U(z))`, `x ~ N(decoder(z), s²)` (Pang et al. 2020).  `LatentPrior` is an energy of the latents with
# persistent chains: `prior.marginal()` is an ordinary Pyro distribution whose `log_prob` is normalized by what the
# chains' weights say, and whose gradient costs a few of their moves.  So plain `SVI` trains it with an amortized guide,
# an encoder that answers each image with a Gaussian of its latents; the loss, −ELBO, is above −log p(x).

# %%
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16.0
order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
test, train = pixels[order[:300]], pixels[order[300:]]
latent = 8


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, outputs)))


class Digits(nn.Module):
    """A decoder with a prior of its latents, and the amortized guide."""

    def __init__(self) -> None:
        super().__init__()
        net = ep.MLPEnergy((latent,), levels=1, hidden=64, depth=2, axis_features=0)
        self.prior = ep.models.LatentPrior(net)
        self.decoder, self.encoder = perceptron(latent, 64), perceptron(64, 2 * latent)
        self.log_scale = nn.Parameter(torch.tensor(-1.5))

    def model(self, x: Tensor) -> None:
        pyro.module("digits", self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", self.prior.marginal())
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("digits", self)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-6.0, 2.0).exp()).to_event(1))


by_svi = Digits()
svi = SVI(by_svi.model, by_svi.guide, pyro.optim.Adam({"lr": 2e-3}), Trace_ELBO())
losses = [svi.step(train[torch.randint(len(train), (128,))]) / 128 for _ in range(STEPS)]
print(f"−ELBO {losses[0]:.1f} to {sum(losses[-20:]) / len(losses[-20:]):.1f} nats a row")

# %% [markdown]
# The same model without an encoder, by Monte Carlo EM: `PosteriorGuide` is a guide whose draws are the ends of MALA
# chains on each row's posterior, begun at draws of the prior.  `SVI` does the rest.

# %%
pyro.clear_param_store()  # which knows weights by their names, and would hand out those above
by_em = Digits()
chains = ep.objectives.PosteriorGuide(by_em.model, steps=20)
em = SVI(by_em.model, chains, pyro.optim.Adam({"lr": 2e-3}), Trace_ELBO())
curve = [em.step(train[torch.randint(len(train), (128,))]) / 128 for _ in range(STEPS)]
assert chains.last is not None
print(f"posterior chains: step size {chains.step_size:.3f}, acceptance {float(chains.last.accept_prob.mean()):.2f}")
plots.show(
    plots.training_curves(
        {
            "SVI: −ELBO, nats": (torch.arange(len(losses)), torch.tensor(losses)),
            "MCMC-EM: −log p(x, z), nats": (torch.arange(len(curve)), torch.tensor(curve)),
        },
        title="Two ways to train",
    ),
    "13_training",
)

# %% [markdown]
# What is it worth?  log p(x) of held-out rows, by annealing from the guide's Gaussian (or N(0, I)) to each row's
# posterior, less log Z of the prior, by annealing too.  Both come with an error.  The chains that tracked log Z through
# training should agree with the latter.

# %%
for name, found in {"SVI": by_svi, "MCMC-EM": by_em}.items():
    found.prior.track()
    log_z = found.prior.log_normalizer(method=ep.normalizing.BAR(256))
    guide = found.guide if name == "SVI" else None
    held_out = ep.normalizing.marginal_log_likelihood(
        found.model, (test[:100],), guide=guide, log_z=log_z, particles=32
    )
    print(f"{name}: held out {held_out}")
    print(f"  log Z of the prior {log_z.estimate:.3f} ± {log_z.standard_error:.2g}", end=", ")
    print(f"tracked {found.prior.tracked_log_z:.3f}")

# %% [markdown]
# Samples: fresh chains of the prior, decoded.  Reconstructions: the guide's mean, decoded.

# %%
with torch.no_grad():
    drawn = by_svi.decoder(by_svi.prior.sample((40,), steps=300))
    again = by_svi.decoder(by_svi.encoder(test[:10])[:, :latent])
plots.show(plots.image_grid(drawn.clamp(0.0, 1.0).reshape(-1, 1, 8, 8), title="Samples"), "13_samples")
rows = {"held out": test[:10], "decoded again": again.clamp(0.0, 1.0)}
plots.show(
    plots.image_strips(
        {name: list(values.reshape(-1, 1, 8, 8)) for name, values in rows.items()},
        titles=[str(int(digits.target[i])) for i in order[:10]],
        title="Reconstructions",
    ),
    "13_reconstructions",
)

# %% [markdown]
# ## A linear inverse problem with an unknown noise level
#
# Of an image 32 random sums of its 64 pixels are seen, with noise of an unknown level.  The learned model is the prior
# of the image; image and noise level are inferred together, on many chains at once.  The truth is known here: the
# intervals of the noise level, and of the pixels, should hold it.

# %%
decoder, scale = by_svi.decoder.requires_grad_(False), float(by_svi.log_scale.detach().exp())
prior = by_svi.prior.requires_grad_(False).marginal().unnormalized()
sums = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) / 8.0
parts, turn = torch.linalg.eigh(sums @ sums.T)
true_noise = 0.05
seen = test[0] @ sums.T + true_noise * torch.randn(32)


def camera(seen: Tensor) -> None:
    noise = pyro.sample("noise", dist.LogNormal(-3.0, 1.0))
    z = pyro.sample("z", prior)
    image = pyro.deterministic("image", decoder(z))
    # What the decoder leaves out of the pixels is noise of its own, of which the turned sums have independent parts.
    width = (noise**2 + scale**2 * parts).sqrt()
    pyro.sample("turned", dist.Normal(image @ sums.T @ turn, width).to_event(1), obs=seen @ turn)


posterior = ep.sample_chains(ep.ChEES(), camera, (seen,), chains=32, draws=200, warmup=300, progress=False)
draws = posterior.flat()
low, high = (float(torch.quantile(draws["noise"], q)) for q in (0.05, 0.95))
print(f"noise {true_noise}: 90 % interval {low:.3f} to {high:.3f}; {posterior.problems() or 'no problem noticed'}")
pixel = draws["image"] + scale * torch.randn_like(draws["image"])
print(ep.evaluation.coverage(test[0], pixel.T, nominal=(0.5, 0.9)))
strip = {"": [test[0], draws["image"].mean(0), draws["image"].std(0) / draws["image"].std(0).max()]}
plots.show(
    plots.image_strips(
        {name: [v.clamp(0.0, 1.0).reshape(1, 8, 8) for v in values] for name, values in strip.items()},
        titles=["truth", "posterior mean", "uncertainty"],
        title="From 32 noisy sums of 64 pixels",
    ),
    "13_inverse",
)

# %% [markdown]
# ## A known physical part and a learned correction
#
# A particle sits in a potential of which physics gives a part, `½ x² + y⁴ / 4`.  The rest must be learned from draws.
# An energy is a sum: the network sees `U = physics + correction`, and everything else is as for any energy.  The true
# correction is known here, `sin(2 x) y`, so the learned one can be compared with it where the draws are.


# %%
def physics(x: Tensor) -> Tensor:
    return 0.5 * x[..., 0] ** 2 + 0.25 * x[..., 1] ** 4


def missing(x: Tensor) -> Tensor:
    return torch.sin(2.0 * x[..., 0]) * x[..., 1]


class Corrected(nn.Module):
    """The known part and a network."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        correction: Tensor = self.correction(x).squeeze(-1)
        return physics(x) + correction


truth = ep.Energy(lambda x: physics(x) + missing(x), (2,))
particle = ep.sample_chains(ep.HMC(), truth, chains=200, draws=25, thin=10, warmup=200, progress=False).flat()["x"]
learned = ep.EBM(Corrected())
learned.is_standardized.fill_(True)  # physics has its own units: data stay as they are
options = ep.TrainingOptions(steps=STEPS, batch_size=256)
history = ep.fit(learned, particle, ep.objectives.ExactScoreMatching(), options=options, progress=False)
print(history)
box = ep.Grid((-4.0, -4.0), (4.0, 4.0), (128, 128))
points = box.nodes().reshape(-1, 2).float()
with torch.no_grad():
    true_log = -truth(points) - float(ep.quadrature(truth, box).log_normalizer)
    own_log = -learned.potential()(points) - float(ep.quadrature(learned.potential(), box).log_normalizer)
    without = ep.Energy(physics, (2,))
    plain_log = -without(points) - float(ep.quadrature(without, box).log_normalizer)
for name, log_density in {"physics and correction": own_log, "physics alone": plain_log}.items():
    kl = float((true_log.exp() * (true_log - log_density)).sum() * box.cell)
    print(f"KL(truth ‖ {name}) = {kl:.4f} nats")
images = [values.exp().reshape(128, 128).T for values in (true_log, own_log, plain_log)]
plots.show(
    plots.density_grid(
        {"density": images},
        ["the truth", "physics and correction", "physics alone"],
        extent=(-4.0, 4.0, -4.0, 4.0),
        title="A learned correction of a known potential",
    ),
    "13_physics",
)

# %% [markdown]
# ## A learned density and a constraint
#
# A product of the learned density and a constraint that it was never shown: the particle is on a soft ring of radius 1.
# `Sum` adds energies; chains sample the product, and a grid tells whether they are right.

# %%
ring = ep.Energy(lambda x: 0.5 * ((x.square().sum(-1).sqrt() - 1.0) / 0.1) ** 2, (2,))
bound = ep.potentials.Sum(learned.requires_grad_(False).potential(), ring)
run = ep.sample_chains(ep.HMC(), bound, chains=200, draws=50, warmup=200, progress=False)
exact = ep.quadrature(bound, ep.Grid((-2.0, -2.0), (2.0, 2.0), (256, 256)))
x = run.samples["x"]
mean, error, by_grid = (
    [round(float(v), 3) for v in values]
    for values in (x.mean((0, 1)), x.mean(1).std(0) / math.sqrt(len(x)), exact.mean)
)
print(f"means {mean} ± {error}, by quadrature {by_grid}")
plots.show(
    plots.scatter_panels(
        {"the learned density": particle[:2_000], "on the ring": x.flatten(0, 1)[:2_000]},
        title="A product of a learned density and a constraint",
        extent=(-3.0, 3.0, -3.0, 3.0),
    ),
    "13_ring",
)

# %% [markdown]
# ## Can these chains be trusted?
#
# Simulation-based calibration (Talts et al. 2018): draw the particle's place from the learned density (from a grid,
# independent of all chains), a noisy measurement of it, and sample the posterior, two hundred times at once.  The rank
# of the truth among the draws is uniform if the kernel is right.  A kernel that accepts every proposal fails the same
# check.

# %%
density = ep.EnergyDistribution(learned.potential()).unnormalized()
mass = own_log.exp() * box.cell


def measured_place(y: Tensor) -> None:
    place = pyro.sample("place", density)
    pyro.sample("y", dist.Normal(place, 0.5).to_event(1), obs=y)


def places(count: int) -> dict[str, Tensor]:
    cell = torch.multinomial(mass, count, replacement=True)
    return {"place": points[cell] + (torch.rand(count, 2) - 0.5) * 8.0 / 128}


checks = {}
for name, kernel in {"MALA": ep.MALA(0.5), "never rejecting": ep.Langevin(0.6)}.items():
    checks[name] = ep.evaluation.calibrate(
        measured_place,
        places,
        kernel,
        (torch.zeros(2),),
        replicates=200,
        warmup=200 if name == "MALA" else 0,
        max_thin=20,
        progress=False,
    )
    print(name, checks[name], sep=": ")
ranks = {f"{key}: {site}": r for key, check in checks.items() for site, r in check.ranks.items()}
plots.show(plots.rank_histogram(ranks, 63, title="Ranks of the truth"), "13_ranks")
bands = checks["MALA"].bands(0.95)[:3]
plots.show(plots.rank_ecdf(ranks, 63, title="Ranks of the truth", bands=bands), "13_ecdf")

# %% [markdown]
# ## Exercises
#
# 1. Set `latent = 2`. How many nats of a held-out row does it cost?
# 2. Measure 16 sums in place of 32. Do the intervals of the noise level still hold the truth, and what do the pixels'
#    uncertainties look like?
# 3. Give the kernel that never rejects a tenth of its step. Do its ranks pass now, and what did it cost?
