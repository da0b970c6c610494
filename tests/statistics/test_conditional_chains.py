"""Missing cells drawn given the others, on densities whose conditionals are known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.data.columns import Categories, FewValues, Numbers, TwoValues
from energyppl.data.monotone import Base
from energyppl.data.tables import Table
from energyppl.tables.conditional import draw_unknown, jump

COVARIANCE = torch.tensor([[1.0, 0.8, -0.4], [0.8, 1.0, 0.0], [-0.4, 0.0, 1.0]])
SCHEDULE = ep.NoiseSchedule.cosine(12, log_snr_max=6.0, log_snr_min=-5.0)


class Gaussian(nn.Module):
    """The exact energies of a Gaussian at every level of a schedule."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        alpha, sigma = (value[:-1, None, None].float() for value in (SCHEDULE.alpha_bar, SCHEDULE.sigma_bar))
        noisy = alpha.square() * covariance + sigma.square() * torch.eye(len(covariance))
        self.register_buffer("precision", torch.linalg.inv(noisy))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * self.weight * (x.unsqueeze(-2) @ self.precision[level] @ x.unsqueeze(-1)).squeeze(-1).squeeze(-1)


def exact(covariance: Tensor = COVARIANCE) -> ep.RecoveryEBM:
    ebm = ep.RecoveryEBM(Gaussian(covariance), SCHEDULE, event_shape=(len(covariance),))
    ebm.is_standardized.fill_(True)
    return ebm


@pytest.mark.parametrize("known", [[0], [1, 2]])
def test_unknown_coordinates_have_their_conditional_mean_and_covariance(known: list[int]) -> None:
    """4,000 independent chains: each moment within 4.5 standard errors, a false alarm in 30,000; the prior's own mean
    is ten errors off at least.
    """
    ebm, count = exact(), 4000
    free = [i for i in range(3) if i not in known]
    rows = torch.full((count, 3), math.nan)
    rows[:, known] = torch.tensor([1.5, -1.0, 0.7])[known]
    found = draw_unknown(ebm, rows)[:, free].double()
    torch.testing.assert_close(draw_unknown(ebm, rows[:5])[:, known], rows[:5, known])
    sigma2, alpha2 = float(SCHEDULE.sigma_bar[0]) ** 2, float(SCHEDULE.alpha_bar[0]) ** 2
    full = (alpha2 * COVARIANCE + sigma2 * torch.eye(3)).double()
    slope = full[free][:, known] @ torch.linalg.inv(full[known][:, known])
    mean = slope @ rows[0, known].double()
    covariance = full[free][:, free] - slope @ full[known][:, free]
    errors = covariance.diagonal().sqrt() / count**0.5
    assert bool(((found.mean(0) - mean).abs() < 4.5 * errors).all())
    assert bool((mean.abs() > 10.0 * errors)[covariance.diagonal() < 0.99].all())
    sample = torch.atleast_2d(torch.cov(found.T))
    spread = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()).sqrt() / count**0.5
    assert bool(((sample - covariance).abs() < 4.5 * spread).all())


def gaussian_table(covariance: Tensor, *columns: Numbers | FewValues) -> ep.tables.TableModel:
    """A model whose coordinates are a Gaussian's, without a training."""
    d = len(covariance)
    names = tuple("abc"[:d])
    transform = ep.data.TableTransform(names, columns, np.zeros(d), np.ones(d))
    rows = np.random.default_rng(0).multivariate_normal(np.zeros(d), covariance.numpy(), 200)
    rows = transform.decode(rows)
    table = Table(rows, names, tuple(np.empty(0) for _ in names), "made")
    return ep.tables.TableModel(exact(covariance), transform, table, rows[:50])


PLAIN = Numbers("none", Base("none"), None, None, 0.0, -math.inf, math.inf)
LOG = Numbers("log", Base("log"), None, None, 0.0, 0.0, math.inf)


def test_given_a_cell_and_not_a_place_in_it() -> None:
    """Given b > 0 of a Gaussian pair with correlation .8, a has mean .8 √(2/π): within 4.5 errors.

    Without moves within the cell, which begin at random in it, it would be the same here; so the cell of b ∈ {0, 1}
    is asked given a besides: P(b = 1 | a = .5) = Φ(.5 · .8 / .6) is exact where b's place follows a.
    """
    pair = COVARIANCE[:2][:, :2]
    model = gaussian_table(pair, PLAIN, FewValues(np.array([0.0, 1.0]), np.array([0.0, 0.5, 1.0])))
    count = 3000
    drawn = model.sample(count, {"b": 1.0}, seed=1)
    assert (drawn.b == 1.0).all()
    error = math.sqrt(1.0 - 0.64 * 2.0 / math.pi) / count**0.5
    assert abs(drawn.a.mean() - 0.8 * math.sqrt(2.0 / math.pi)) < 4.5 * error + 0.004  # level 0's noise
    share = model.sample(count, {"a": 0.5}, seed=2).b.mean()
    wanted = 0.5 * (1.0 + math.erf(0.5 * 0.8 / 0.6 / math.sqrt(2.0)))
    assert abs(share - wanted) < 4.5 * math.sqrt(0.25 / count) + 0.004


def test_a_cell_s_places_follow_the_other_known_columns() -> None:
    """Given a = 1.5 and b > 0, c hangs on b's place: its mean is exact only if the place moves within the cell.

    With c's loading on b, E[c | a, b > 0] is a truncated Gaussian's mean; places drawn without regard to a would be
    off by many errors, which the test's negative control shows.
    """
    covariance = torch.tensor([[1.0, 0.9, 0.72], [0.9, 1.0, 0.8], [0.72, 0.8, 1.0]])  # c depends on b alone
    model = gaussian_table(covariance, PLAIN, FewValues(np.array([0.0, 1.0]), np.array([0.0, 0.5, 1.0])), PLAIN)
    count = 3000
    drawn = model.sample(count, {"a": -0.5, "b": 1.0}, seed=3)
    mean, sd = -0.45, math.sqrt(1.0 - 0.81)
    ratio = math.exp(-0.5 * (mean / sd) ** 2) / math.sqrt(2.0 * math.pi)
    ratio /= 0.5 * (1.0 + math.erf(mean / sd / math.sqrt(2.0)))
    wanted = 0.8 * (mean + sd * ratio)
    ignoring = 0.8 * math.sqrt(2.0 / math.pi)
    error = drawn.c.std() / count**0.5
    assert abs(drawn.c.mean() - wanted) < 4.5 * error + 0.01
    assert abs(ignoring - wanted) > 10.0 * error


@pytest.mark.parametrize("right", [True, False])
def test_jumps_between_cells_leave_the_density_as_it_is(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 exact draws have their covariance after 12 jumps of each column: within 4.5 errors, 1 alarm in 10,000.

    A quarter of the values change at least.  Without the slope of the map the covariance is over 20 errors off.
    """
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    covariance, count = 0.3 * torch.eye(6) + mixing @ mixing.T / 9.0, 20_000
    columns = (PLAIN, FewValues(np.arange(3.0), np.array([0.0, 0.2, 0.7, 1.0])), TwoValues(np.arange(2.0)))
    scale = np.array([1.0, 1.0, 0.5, 0.5, 0.7, 0.9])
    transform = ep.data.TableTransform(tuple("abcd"), (*columns, Categories(3)), 0.2 * scale, scale)
    if not right:
        own = FewValues.jump
        monkeypatch.setattr(FewValues, "jump", lambda self, z, u: (own(self, z, u)[0], np.zeros(len(z))))
    ebm = exact(covariance)
    full = (float(SCHEDULE.alpha_bar[0]) ** 2 * covariance + float(SCHEDULE.sigma_bar[0]) ** 2 * torch.eye(6)).double()
    began = x = (torch.randn(count, 6, dtype=torch.float64) @ torch.linalg.cholesky(full).T).float()
    for _ in range(12):
        x = jump(ebm, transform, x)
    off = torch.cov(x.double().T) - full
    errors = ((full.diagonal()[:, None] * full.diagonal() + full.square()) / count).sqrt()
    if not right:
        assert float((off / errors).abs().max()) > 20.0
        return
    assert float((off / errors).abs().max()) < 4.5
    before, after = (transform.decode(v.double().numpy()) for v in (began, x))
    assert ((before != after).mean(0)[1:] > 0.25).all()
    held = jump(ebm, transform, began, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).expand_as(x))
    assert torch.equal(held[:, 2:], began[:, 2:])
    assert not torch.equal(held, began)


def test_imputations_cover_and_keep_units() -> None:
    """Of 400 log-normal cells the 95 % intervals of 60 draws, about 93 % wide, cover 88 to 99 %: 1 alarm in 10,000."""
    pair = COVARIANCE[:2][:, :2]
    model = gaussian_table(pair, PLAIN, LOG)
    rng = np.random.default_rng(3)
    rows = np.array(rng.multivariate_normal(np.zeros(2), pair.numpy(), 400))
    rows[:, 1] = np.exp(rows[:, 1])
    frame = pd.DataFrame(rows, columns=["a", "b"])
    found = ep.tables.impute(model, frame.assign(b=np.nan), draws=60)
    cells = found.cells()
    covered = ((cells.low < frame.b) & (frame.b < cells.high)).mean()
    assert 0.88 < covered < 0.99
    assert (found.best().b > 0.0).all()
    assert found.completed()[3].a.equals(frame.a)
    assert np.corrcoef(np.log(found.best().b), frame.a)[0, 1] > 0.9


def test_samples_of_a_lattice_are_values_of_the_table() -> None:
    """To the last digit, where these are rounded: a test of samples had found a column of float32 all different."""
    values = (0.149 + np.arange(-20, 21)).astype(np.float32).astype(np.float64)
    rows = np.random.default_rng(0).choice(values, (400, 1))
    table = ep.data.table_from_array(rows, ("a",))
    model = ep.tables.TableModel(exact(torch.eye(1)), ep.data.TableTransform.fit(table), table, rows[:50])
    assert np.isin(model.sample(300, seed=0).a, values).all()


def test_given_what_cannot_be_is_refused() -> None:
    model = gaussian_table(COVARIANCE[:2][:, :2], PLAIN, LOG)
    for given, message in (
        ({"z": 1.0}, "got 'z': they are a, b"),
        ({"b": -1.0}, "b=-1.0 lies outside of what"),
        ({"a": math.nan}, "a must be a value; got nan"),
    ):
        with pytest.raises(ep.InvalidInput, match=message):
            model.sample(3, given)
    with pytest.raises(ep.InvalidInput, match="must have missing cells to impute"):
        ep.tables.impute(model, pd.DataFrame({"a": [1.0], "b": [2.0]}))
