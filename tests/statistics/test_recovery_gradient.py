"""The gradient of recovery likelihood: by ``fit``'s objective, by Pyro's SVI, and exactly, by quadrature in 1-D."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.levels.recovery import recovery_potential, tilt
from energyppl.inference.objectives.level_allocation import allocate_levels, draw_upper_levels
from tests.support.objectives import loss_of


class Quartic(nn.Module):
    """A 1-D energy with three parameters that the data below do not fit: its gradient is far from zero."""

    event_shape = torch.Size((1,))

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, 0.5, 0.1], dtype=torch.float64))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Energies of ``x``, shape ``(*batch, 1)``."""
        x = x.squeeze(-1)
        return self.weights[0] * x + self.weights[1] * x**2 + self.weights[2] * x**4 + 0.0 * level


def model_and_data() -> tuple[ep.RecoveryEBM, Tensor]:
    ebm = ep.RecoveryEBM(Quartic(), ep.NoiseSchedule.cosine(3), kernel=ep.kernels.CrankNicolson())
    ebm.is_standardized.fill_(True)  # the data's own coordinates
    data = torch.cat([torch.randn(600) * 0.3 - 1.0, torch.randn(200) * 0.2 + 1.5]).double().unsqueeze(1)
    return ebm, data


def exact_gradient(
    ebm: ep.RecoveryEBM, clean: Tensor, noisy: Tensor, level: Tensor, upper: Tensor | None = None
) -> Tensor:
    """∂/∂θ of mean −log p(x_t | x_{t+1}), each conditional normalized on a grid."""
    grid = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    tilted = recovery_potential(ebm, noisy, level, upper)
    log_z = torch.logsumexp(-tilted(grid.reshape(-1, 1, 1).expand(-1, len(noisy), 1)), 0) + math.log(16 / 1000)
    return torch.autograd.grad((tilted(clean) + log_z).mean(), ebm.net.weights)[0]


def batches(data: Tensor, size: int) -> list[Tensor]:
    return [data[torch.randint(len(data), (size,))] for _ in range(REPEATS)]


REPEATS, SIZE = 60, 96
PLAIN = {"steps": 60, "skip_fraction": 0.0, "tie": 0.0, "masses": 0.0}


def through_objective(ebm: ep.RecoveryEBM, data: Tensor, **settings: object) -> Tensor:
    """Gradients of the objective's loss, one row for each batch."""
    objective = ep.RecoveryLikelihood(**{**PLAIN, "adapt": False, **settings})  # type: ignore[arg-type]
    return torch.stack(
        [torch.autograd.grad(loss_of(objective, ebm, batch).value, ebm.net.weights)[0] for batch in batches(data, SIZE)]
    )


def through_svi(ebm: ep.RecoveryEBM, data: Tensor) -> Tensor:
    """Gradients that ``pyro.infer.SVI`` leaves for its optimizer, for each data point, one row for each batch."""
    svi = SVI(
        lambda batch: ebm(batch, ep.RecoveryLikelihood(**PLAIN)),  # type: ignore[arg-type]
        lambda batch: None,
        pyro.optim.Adam({"lr": 0.0}),
        Trace_ELBO(),
    )
    rows = []
    for batch in batches(data, SIZE):
        ebm.zero_grad()
        svi.loss_and_grads(svi.model, svi.guide, batch)
        rows.append(ebm.net.weights.grad / SIZE)
    return torch.stack(rows)


def truth(ebm: ep.RecoveryEBM, data: Tensor) -> Tensor:
    pairs = []
    for batch in batches(ebm.to_unit(data), SIZE):
        level = allocate_levels(SIZE, 3)
        clean, noisy = ebm.schedule.pairs(batch, level)
        pairs.append(exact_gradient(ebm, clean, noisy, level))
    return torch.stack(pairs)


def z_scores(a: Tensor, b: Tensor) -> Tensor:
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return (a.mean(0) - b.mean(0)) / error


def test_fit_and_svi_have_the_exact_gradient() -> None:
    """Nine comparisons at 4.5 standard errors: a false alarm in about 1 run of 16,000."""
    ebm, data = model_and_data()
    exact, fitted = truth(ebm, data), through_objective(ebm, data)
    svi = through_svi(ebm, data)
    assert float(z_scores(torch.zeros_like(exact) + 1e-9 * torch.randn_like(exact), exact).abs().max()) > 10, (
        "no signal"
    )
    for ours, theirs in ((fitted, exact), (svi, exact), (fitted, svi)):
        assert float(z_scores(ours, theirs).abs().max()) < 4.5


def test_reaching_further_has_the_exact_gradient_too() -> None:
    """Pairs of any two levels, normalized on a grid; 3 comparisons at 4.5 standard errors: 1 alarm in 50,000 runs."""
    ebm, data = model_and_data()
    fitted, rows = through_objective(ebm, data, skip_fraction=1.0), []
    for batch in batches(data, SIZE):
        level = allocate_levels(SIZE, 3)
        upper = draw_upper_levels(level, 3, 1.0)
        clean, noisy = ebm.schedule.pairs(batch, level, upper=upper)
        rows.append(exact_gradient(ebm, clean, noisy, level, upper))
    assert float(z_scores(fitted, torch.stack(rows)).abs().max()) < 4.5


def test_a_constant_log_z_loses_the_gradient() -> None:
    """Negative control: with a number in place of the contrastive log Z the same comparison fails."""
    ebm, data = model_and_data()
    exact, rows = truth(ebm, data), []
    for batch in batches(data, SIZE):
        level = allocate_levels(SIZE, 3)
        clean, noisy = ebm.schedule.pairs(batch, level)
        tilted = recovery_potential(ebm, noisy, level)
        site = ep.RecoveryDistribution(tilted.potential, tilted.center, tilted.sigma, log_normalizer=1.0)
        with pytest.warns(UserWarning, match="lacks that of log Z"):
            rows.append(torch.autograd.grad(-site.log_prob(clean).mean(), ebm.net.weights)[0])
    assert float(z_scores(torch.stack(rows), exact).abs().max()) > 10


def test_the_marginal_has_the_gradient_of_maximum_likelihood() -> None:
    """log Z's gradient comes from 16,384 nodes of equal mass: no noise, and within a thousandth of autograd's."""
    ebm, data = model_and_data()
    x = data[:200]
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    log_z = torch.logsumexp(-ebm.potential(0)(grid), 0) + math.log(16 / 4000)
    exact = torch.autograd.grad(-ebm.potential(0)(x).mean() - log_z, ebm.net.weights)[0]
    ours = torch.autograd.grad(ebm.log_prob(x).mean(), ebm.net.weights)[0]
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)


def test_the_recovery_distribution_as_an_observed_site_has_the_exact_gradient() -> None:
    """In data coordinates; 3 comparisons at 4.5 standard errors: 1 false alarm in 50,000 runs."""
    ebm, data = model_and_data()
    ebm.standardize(data)
    exact, rows = truth(ebm, data), []
    for batch in batches(data, SIZE):
        level = allocate_levels(SIZE, 3)
        clean, noisy = (ebm.loc + ebm.scale * z for z in ebm.schedule.pairs(ebm.to_unit(batch), level))
        alpha = tilt(ebm.schedule)[0][level, None]
        y = ebm.loc + alpha * (clean - ebm.loc)
        log_prob = ebm.recovery(noisy, level, steps=60, contrastive=True).log_prob(y)
        rows.append(torch.autograd.grad(-log_prob.mean(), ebm.net.weights)[0])
    assert float(z_scores(torch.stack(rows), exact).abs().max()) < 4.5


def test_plain_svi_trains() -> None:
    """SVI with Pyro's own Adam takes the divergence from the data, normalized by quadrature, to a quarter or less."""
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=32, frequencies=8, levels=4), ep.NoiseSchedule.cosine(4))
    toy = ep.toys.OneDimensionalMixture()
    data = toy.sample((4000,)).float()
    ebm.standardize(data)
    held_out = toy.sample((4000,)).float()
    before = float(ebm.log_prob(held_out).mean().detach())
    svi = SVI(ebm, lambda batch: None, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(400):
        svi.step(data[torch.randint(len(data), (256,))])
    after = float(ebm.log_prob(held_out).mean().detach())
    assert -toy.entropy() - after < 0.25 * (-toy.entropy() - before)


@pytest.mark.parametrize("start", [ep.objectives.from_data, ep.objectives.from_noisy])
def test_stuck_chains_give_no_gradient_only_from_the_data(start: object) -> None:
    """The reason for the default: stuck chains push the energy nowhere from the data, and somewhere from x̃."""
    ebm, data = model_and_data()
    kernel = ep.MALA(1e-9)
    objective = ep.RecoveryLikelihood(kernel, steps=1, start=start, adapt=False, tie=0.0, masses=0.0)  # type: ignore[arg-type]
    gradient = torch.autograd.grad(loss_of(objective, ebm, data).value, ebm.net.weights)[0]
    assert (float(gradient.abs().max()) < 1e-6) == (start is ep.objectives.from_data)
