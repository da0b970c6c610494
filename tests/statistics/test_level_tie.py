"""The level tie: zero gradient at the true densities, and the masses of separated regions, which recovery can't see."""

from dataclasses import replace

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.level_tie import level_tie
from tests.support.objectives import loss_of

FAR = 4.0  # a narrow mode of a tenth of the mass here, the rest about the origin; of variance one in all
MEANS, WIDTHS, SHARES = torch.tensor([-0.2, 3.5]), torch.tensor([0.4, 0.1]), torch.tensor([0.9, 0.1])
SCHEDULES = {
    "variance-preserving": ep.NoiseSchedule.cosine(5),
    "variance-exploding": ep.NoiseSchedule.geometric_sigmas(5, low=0.05, high=8.0),
}
REPEATS, SIZE = 80, 256


class Truth(nn.Module):
    """Exact energies of a 1-D mixture at each level, of points of unit variance, plus numbers that ought to be 0.

    The numbers are one for each level, and one for the far mode at the sharpest level.
    """

    event_shape = torch.Size((1,))

    def __init__(self, schedule: ep.NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.wrong = nn.Parameter(torch.zeros(schedule.levels + 1, dtype=torch.float64))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Energies of ``x``, ``(*batch, 1)``."""
        x, std = x.squeeze(-1), self.schedule.marginal_std[level]
        alpha, sigma = self.schedule.alpha_bar[level] / std, self.schedule.sigma_bar[level] / std
        mean = alpha[..., None] * MEANS.double()
        width = ((alpha[..., None] * WIDTHS.double()) ** 2 + sigma[..., None] ** 2).sqrt()
        parts = torch.distributions.Normal(mean, width, validate_args=False).log_prob(x[..., None])
        far = torch.sigmoid(40.0 * (x - 2.0)) * (level == 0)
        return -(parts + SHARES.double().log()).logsumexp(-1) + self.wrong[level] + self.wrong[-1] * far


def draw(count: int) -> Tensor:
    which = torch.multinomial(SHARES, count, replacement=True)
    return (MEANS[which] + WIDTHS[which] * torch.randn(count)).double().unsqueeze(1)


def through_objective(model: ep.RecoveryEBM, objective: ep.RecoveryLikelihood) -> Tensor:
    """Gradients with respect to the numbers, one row for each batch."""
    losses = (loss_of(objective, model, draw(SIZE)).value for _ in range(REPEATS))
    return torch.stack([torch.autograd.grad(loss, model.net.wrong)[0] for loss in losses])


def through_svi(model: ep.RecoveryEBM, objective: ep.RecoveryLikelihood) -> Tensor:
    """The same as Pyro's SVI leaves them for its optimizer, for each data point."""
    svi = SVI(lambda batch: model(batch, objective), lambda batch: None, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
    rows = []
    for _ in range(REPEATS):
        model.zero_grad()
        svi.loss_and_grads(svi.model, svi.guide, draw(SIZE))
        rows.append(model.net.wrong.grad / SIZE)
    return torch.stack(rows)


def mean_and_error(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mean(0), rows.std(0) / REPEATS**0.5 + 1e-12


def z_scores(model: ep.RecoveryEBM, objective: ep.RecoveryLikelihood) -> Tensor:
    """Mean gradient over batches with respect to the numbers, in standard errors."""
    mean, error = mean_and_error(through_objective(model, objective))
    return mean / error


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_true_densities_have_no_gradient(schedule: ep.NoiseSchedule) -> None:
    """Six numbers at 4.5 standard errors, each of about normal error: a false alarm in about 1 run of 25,000.

    The tie outweighs recovery likelihood a hundredfold, so what is tested is the tie.
    """
    model = ep.RecoveryEBM(Truth(schedule), schedule)
    model.is_standardized.fill_(True)  # the truth's own coordinates
    assert float(z_scores(model, ep.RecoveryLikelihood(tie=100.0, steps=1)).abs().max()) < 4.5
    with torch.no_grad():
        model.net.wrong[2] = 0.2  # negative control: one level's normalizer is off by 20 %
    assert float(z_scores(model, ep.RecoveryLikelihood(tie=100.0, steps=1)).abs().max()) > 8.0


def test_only_the_tie_sees_the_mass_of_a_far_mode() -> None:
    """A far mode whose density is e times too large at the sharpest level: no other objective's gradient shows it."""
    schedule = SCHEDULES["variance-preserving"]
    model = ep.RecoveryEBM(Truth(schedule), schedule)
    model.is_standardized.fill_(True)  # the truth's own coordinates
    with torch.no_grad():
        model.net.wrong[-1] = -1.0
    blind = z_scores(model, ep.RecoveryLikelihood(tie=0.0, masses=0.0, skip_fraction=0.0))
    seeing = z_scores(model, ep.RecoveryLikelihood(tie=1.0, masses=0.0, skip_fraction=0.0))
    assert abs(float(blind[-1])) < 4.5  # a false alarm in 1 run of 150,000
    assert float(seeing[-1]) < -8.0  # gradient descent lifts the energy there


def test_svi_has_the_gradient_of_fit() -> None:
    """Six comparisons at 4.5 standard errors: a false alarm in about 1 run of 25,000."""
    schedule = SCHEDULES["variance-preserving"]
    model = ep.RecoveryEBM(Truth(schedule), schedule)
    model.is_standardized.fill_(True)  # the truth's own coordinates
    with torch.no_grad():
        model.net.wrong[2] = 0.5
    tied = ep.RecoveryLikelihood(tie=3.0, steps=1, adapt=False)
    mean, error = mean_and_error(through_objective(model, tied))
    ours, own_error = mean_and_error(through_svi(model, tied))
    assert float(((ours - mean) / (error.square() + own_error.square()).sqrt()).abs().max()) < 4.5
    plain, plain_error = mean_and_error(through_svi(model, replace(tied, tie=0.0)))  # negative control
    assert float(((plain - mean) / (error.square() + plain_error.square()).sqrt()).abs().max()) > 10


def test_energies_learn_their_normalizers() -> None:
    """A Gaussian's six levels, each off by some nats at first: log Z is 0 within .1 after 300 updates of 512 pairs.

    A level's error is about 2 / √(300 · 512) ≈ .005 nats times the number of links to the known level.
    """
    schedule = ep.NoiseSchedule.cosine(6)
    offsets = nn.Parameter(torch.linspace(-2.0, 2.0, 6))

    class Offset(nn.Module):
        event_shape = torch.Size((2,))

        def __init__(self) -> None:
            super().__init__()
            self.offsets = offsets

        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return 0.5 * x.square().sum(-1) + 1.8378770664 + self.offsets[level]

    model = ep.RecoveryEBM(Offset(), schedule)
    optimizer = torch.optim.Adam([offsets], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1.0 - step / 300)
        level = torch.randint(6, (512,))
        clean, noisy = schedule.pairs(torch.randn(512, 2), level)
        loss = level_tie(model, clean, noisy, level, level + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(offsets.detach().abs().max()) < 0.1
