"""Score matching at a continuous noise level: its gradient, its bounds, and what the tie sees."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives import held_out, level_score_matching
from energyppl.inference.objectives.held_out import row_weights
from energyppl.inference.objectives.level_score_matching import (
    _time_score,
    at_log_snr,
    evidence_bound,
    implied_log_likelihood,
    noised,
)
from tests.support.objectives import loss_of

LIMIT = 4.5  # standard errors
VARIANCE = torch.tensor([0.3, 1.0, 2.0])


class Gaussians(nn.Module):
    """The exact energies of N(0, diag(variance)) at every log-SNR; at ``shift`` 0 they are normalized."""

    event_shape, continuous = torch.Size((3,)), True

    def __init__(self, variance: Tensor = VARIANCE, shift: float = 0.0) -> None:
        super().__init__()
        self.variance, self.shift = nn.Parameter(variance.clone()), nn.Parameter(torch.tensor(shift))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        signal = torch.sigmoid(log_snr).unsqueeze(-1)
        variance = signal * self.variance + 1.0 - signal
        energy = 0.5 * (x.square() / variance + variance.log() + math.log(2.0 * math.pi)).sum(-1)
        return energy + self.shift * signal[..., 0]


def model(**settings: object) -> ep.RecoveryEBM:
    ebm = ep.RecoveryEBM(Gaussians(**settings), ep.NoiseSchedule.cosine(6, log_snr_max=4.6, log_snr_min=-6.0))  # type: ignore[arg-type]
    ebm.is_standardized.fill_(True)
    return ebm


def rows(count: int) -> Tensor:
    return VARIANCE.sqrt() * torch.randn(count, 3)


def test_the_truth_is_the_minimizer() -> None:
    """4 gradients over 150 batches within 4.5 standard errors, t of 149 degrees: false alarm 1 in 17,000."""
    ebm, objective, found = model(), ep.objectives.LevelScoreMatching(), []
    weights, state = [ebm.net.variance, ebm.net.shift], objective.init(ebm)
    for _ in range(150):
        value = objective.loss(ebm, state, rows(200)).value
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)]))  # type: ignore[arg-type]
    grads = torch.stack(found)
    z = grads.mean(0) / (grads.std(0) / math.sqrt(len(grads)))
    assert float(z.abs().max()) < LIMIT


def test_the_tie_alone_sees_a_level_that_is_too_heavy() -> None:
    """A shift of level 0 by 0.5 nats changes no slope: without the tie its gradient is exactly zero."""
    for tie, seen in ((0.0, False), (1.0, True)):
        ebm = model(shift=0.5)
        value = loss_of(ep.objectives.LevelScoreMatching(tie=tie), ebm, rows(4000)).value
        (grad,) = torch.autograd.grad(value, [ebm.net.shift], allow_unused=True)  # type: ignore[list-item]
        assert (grad is not None and float(grad) > 0.01) == seen


def test_the_time_score_is_minus_the_derivative_of_the_log_density() -> None:
    """Against autograd of the Gaussian's log density in float64 at fixed x; rounding-level."""
    clean, noise = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    log_snr = torch.linspace(-5.0, 4.0, 5, dtype=torch.float64).requires_grad_()
    x, _ = noised(clean, noise, log_snr.detach())
    alpha, sigma = log_snr.sigmoid().sqrt()[:, None], (-log_snr).sigmoid().sqrt()[:, None]
    log_density = torch.distributions.Normal(alpha * clean, sigma).log_prob(x).sum()
    (derivative,) = torch.autograd.grad(log_density, log_snr)
    torch.testing.assert_close(_time_score(clean, noise, log_snr.detach()), -derivative)


def test_at_the_truth_implied_likelihood_and_evidence_bound_are_minus_the_entropy() -> None:
    """20,000 rows, within 4.5 standard errors of the log density's mean, .0087, and of the bound's noise, about .02."""
    torch.manual_seed(0)
    ebm = model()
    data = rows(20_000)
    level0 = torch.sigmoid(torch.tensor(4.6)) * VARIANCE + torch.sigmoid(torch.tensor(-4.6))
    entropy = float(0.5 * (level0.log() + 1.0 + math.log(2.0 * math.pi)).sum())
    assert implied_log_likelihood(ebm, data) == pytest.approx(-entropy, abs=0.04)
    assert evidence_bound(ebm, data) == pytest.approx(entropy, abs=0.1)
    worse = model(variance=torch.tensor([0.9, 1.0, 2.0]))
    assert evidence_bound(worse, data) > entropy + 0.1, "negative control"


def test_training_normalizes_by_itself() -> None:
    """Two columns of a ring and one Gaussian: implied and exact log Z within a quarter of a nat after 400 updates."""
    torch.manual_seed(0)
    data = torch.cat([ep.toys.Rings(radii=(1.0,), sd=0.2).sample((4000,)), torch.randn(4000, 1)], 1)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((3,), hidden=64), ep.NoiseSchedule.cosine(8, log_snr_max=4.6, log_snr_min=-6.0))
    options = ep.TrainingOptions(steps=400, batch_size=256, learning_rate=3e-3, ema=0.98, evaluate_every=100)
    history = ep.fit(ebm, data, options=options, progress=False)
    assert math.isfinite(history.records[-1].values["tie"])
    log_z = ebm.log_normalizer().estimate - float(ebm.scale.log().sum())
    assert abs(log_z) < 0.25
    x = ebm.diffuse(data[:5], 0)
    exact = ebm.implied_log_prob(x) - ebm.log_prob(x)
    torch.testing.assert_close(exact, torch.full((5,), log_z), atol=1e-3, rtol=0.0)
    assert at_log_snr(ebm, torch.tensor(0.0))(torch.zeros(2, 3)).shape == (2,)


def test_one_wild_row_does_not_rule_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row 1,000 widths out adds few nats to loss and measure, and hundreds where it counts as any other."""
    torch.manual_seed(0)
    ebm, clean = model(), rows(400)
    wild = clean.clone()
    wild[0, 1] = 1000.0
    objective = ep.objectives.LevelScoreMatching()
    usual, ruled = (float(loss_of(objective, ebm, data).value.detach()) for data in (clean, wild))
    assert abs(ruled - usual) < 60.0
    measured = [objective.measure(ebm, objective.init(ebm), data) for data in (clean, wild)]
    assert abs(measured[1] - measured[0]) < 10.0, "the measure that chooses the best weights"
    near = clean.clone()
    near[0, 1] = 49.0
    assert float(row_weights(near).min()) == 1.0
    assert float(row_weights(wild).min()) == pytest.approx(1 / 400)
    for module in (level_score_matching, held_out):
        monkeypatch.setattr(module, "row_weights", lambda clean: torch.ones(len(clean)))
    unweighted = float(loss_of(objective, ebm, wild).value.detach())
    assert unweighted - usual > 100.0
    assert objective.measure(ebm, objective.init(ebm), wild) - measured[0] > 100.0


def test_weight_decay_shrinks_weights_by_its_rate() -> None:
    """Beside the same update without it, one leaves the weights smaller by rate · decay · weight, up to rounding."""
    after = []
    for decay in (0.0, 2.0):
        torch.manual_seed(0)
        ebm = model()
        options = ep.TrainingOptions(steps=1, batch_size=8, learning_rate=0.1, weight_decay=decay, ema=0.0)
        ep.fit(ebm, rows(64), options=options, progress=False)
        after.append(ebm.net.variance.detach())
    torch.testing.assert_close(after[0] - after[1], 0.1 * 2.0 * VARIANCE)


def test_log_snrs_that_exp_overflows_are_taken() -> None:
    schedule = ep.NoiseSchedule.cosine(4, log_snr_max=800.0, log_snr_min=-6.0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, continuous=True), schedule)
    rows = torch.randn(100, 2)
    ebm.standardize(rows)
    assert math.isfinite(evidence_bound(ebm, rows))
