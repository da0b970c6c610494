"""Multi-scale denoising score matching: the temperature law, the objective, sampling, inpainting."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.level_allocation import stratified_levels
from tests.benchmarks.density import gap
from tests.benchmarks.temperature import BASE, CIFAR, LAW, ExactField, second_moment
from tests.support.multiscale import Bell, gaussian
from tests.support.objectives import measure_of


@pytest.mark.parametrize(("d", "temperature", "exact", "chains", "burn", "kept"), LAW)
def test_temperature_law(d: int, temperature: float, exact: float, chains: int, burn: int, kept: int) -> None:
    """Chains agree with the radial integral: 4.5 standard errors, nine cases, a false alarm in 16,000."""
    potential = ExactField.cifar(d)
    truth = potential.stationary(temperature)
    assert truth == pytest.approx(exact, abs=5e-4)
    mean, error, bias = second_moment(potential, temperature, chains, burn, kept)
    assert abs(mean - truth) < 4.5 * error + bias


def test_the_law_holds_in_high_dimension_only() -> None:
    """The target of T = σ²/σ0², 1 + σ², is met to 3 % in 784 dimensions, and missed by more than 70 % in two."""
    for d, low, high in ((784, 0.0, 0.03), (2, 0.7, 2.0)):
        field = ExactField.cifar(d)
        for temperature in (1.0, 25.0, 100.0):
            miss = abs(field.stationary(temperature) / (1.0 + BASE**2 * temperature) - 1.0)
            assert low <= miss < high, (d, temperature)


# --- The objective ---


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.999])
def test_stratification_is_exact(offset: float) -> None:
    assert stratified_levels(128, 128, offset).tolist() == list(range(128)), "row i gets the i-th level"
    assert torch.bincount(stratified_levels(384, 128, offset)).tolist() == [3] * 128
    for rows in (10, 100, 130, 500):
        counts = torch.bincount(stratified_levels(rows, 128, offset), minlength=128)
        assert int(counts.max() - counts.min()) <= 1
        assert int(stratified_levels(rows, 128, offset).max()) < 128


def test_an_offset_gives_every_level_its_turn() -> None:
    """30 rows, 128 levels: over even offsets each level comes up equally often, to rounding."""
    counts = sum(torch.bincount(stratified_levels(30, 128, (i + 0.5) / 640), minlength=128) for i in range(640))
    assert int(counts.max() - counts.min()) <= 2  # type: ignore[union-attr]


def z_scores(values: Tensor) -> Tensor:
    return values.mean(0) / (values.std(0) / math.sqrt(len(values)))


def test_loss_of_a_gaussian() -> None:
    """The loss of U = ½ k |x|² / σ0² on rows x_i at their σ_i is k² mean(x_i²/σ_i²) + (1 − k)²; 4.5 standard errors."""
    ebm, objective, k = gaussian((3,), 0.3), ep.objectives.MultiscaleScoreMatching(), 0.3
    data = torch.randn(256, 3)
    ebm.standardize(data)
    sigmas = CIFAR.repeat_interleave(2)  # of 256 rows
    truth = k**2 * float((ebm.to_unit(data) / sigmas[:, None]).square().mean()) + (1 - k) ** 2
    state = objective.init(ebm)
    found = torch.tensor([float(objective.loss(ebm, state, data).value.detach()) for _ in range(300)])
    assert abs(float(z_scores(found - truth))) < 4.5
    measured = measure_of(objective, ebm, data)
    assert measured == measure_of(objective, ebm, data), "the noise is fixed"
    assert abs(measured - truth) < 0.2 * truth
    constant = gaussian((3,), 0.0)
    assert measure_of(objective, constant, data) == pytest.approx(1.0, abs=0.2)


def test_fit_finds_the_best_gaussian() -> None:
    """The best k for data of unit variance is 1 / (1 + mean(1/σ²)), where the loss above has no slope."""
    sigmas = torch.linspace(3.0, 0.3, 32, dtype=torch.float64)
    ebm = ep.MultiscaleEBM(Bell((5,)), sigmas, base_sigma=0.5)
    options = ep.TrainingOptions(steps=300, learning_rate=0.02, ema=0.95)
    ep.fit(
        ebm, 3.0 + 2.0 * torch.randn(4000, 5), ep.objectives.MultiscaleScoreMatching(), options=options, progress=False
    )
    assert ebm.net.k.item() == pytest.approx(1.0 / (1.0 + float((sigmas**-2).mean())), rel=0.03)
    assert bool((ebm.scale == ebm.scale[0]).all()), "one scale for all coordinates, as the noise has"


class Perturbed(nn.Module):
    """The exact field, stretched by a factor, and three ways to leave it."""

    def __init__(self, dimensions: int, stretch: float = 1.0) -> None:
        super().__init__()
        self.field, self.stretch = ExactField.cifar(dimensions), stretch
        self.event_shape = self.field.event_shape
        self.away = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1)
        ways = torch.stack([square, square**2 / self.event_shape.numel(), x.cos().sum(-1)], -1)
        return BASE**2 * self.stretch * self.field(x) + ways @ self.away


@pytest.mark.parametrize("d", [2, 20])
def test_the_exact_field_is_the_losss_optimum(d: int) -> None:
    """Its slope along each of three ways is 0 within 4.5 standard errors; that of a field 10 % longer is not.

    Six numbers: a false alarm in 25,000.
    """

    def slopes(stretch: float) -> Tensor:
        net, objective = Perturbed(d, stretch), ep.objectives.MultiscaleScoreMatching()
        ebm, found = ep.MultiscaleEBM(net, CIFAR, base_sigma=BASE), []
        state = objective.init(ebm)
        for _ in range(300):
            loss = objective.loss(ebm, state, torch.randn(1280, d)).value
            found.append(torch.autograd.grad(loss, net.away)[0])
        return z_scores(torch.stack(found))

    assert float(slopes(1.0).abs().max()) < 4.5
    assert float(slopes(1.1).abs().max()) > 6.0


# --- Sampling ---


def test_temperatures() -> None:
    t = ep.levels.TemperatureSchedule().temperatures()
    assert len(t) == 2700
    assert bool((t[:500] == 100.0).all())
    assert float(t[2499]) == float(t[2500]) == 1.0
    assert float(t[-1]) == 0.0
    assert torch.allclose(t[500:2500].log().diff(), -torch.tensor(math.log(100.0) / 1999, dtype=torch.float64))
    assert torch.allclose(t[2500:].diff(), -torch.tensor(1 / 199, dtype=torch.float64))


def test_the_jump_goes_to_the_mean_of_the_clean_points() -> None:
    """For ½ k |x|² that is (1 − k) x, in data coordinates around ``loc``; a sample's last step is the jump."""
    ebm = gaussian((4,), 0.25)
    x = torch.randn(7, 4)
    assert torch.allclose(ep.levels.denoising_jump(ebm.potential(), x, BASE), 0.75 * x)
    ebm.loc.fill_(3.0)
    ebm.scale.fill_(2.0)
    schedule = ep.levels.TemperatureSchedule(hot=5, cooling=5, quench=5)
    noisy, clean = (
        torch.random.manual_seed(1) and ebm.sample((7,), schedule=schedule, denoise=denoise)
        for denoise in (False, True)
    )
    assert torch.allclose(clean - 3.0, 0.75 * (noisy - 3.0), atol=1e-5)


def test_samples_of_a_gaussian() -> None:
    """A linear force: the variance of every step is known, down to the end and past the jump.

    Begun at σ0² T, a step of force k x / σ0² takes it to (1 − b)² v + ε² T with b = ½ ε² k / σ0², and the jump to
    (1 − k)² v.  4.5 standard errors, a false alarm in 150,000.
    """
    k, schedule = 0.5, ep.levels.TemperatureSchedule(9.0, hot=100, cooling=300, quench=50)
    ebm, step, variance = gaussian((50,), k), 0.2 * BASE, BASE**2 * 9.0
    ebm.scale.fill_(3.0)
    for temperature in schedule.temperatures().tolist():
        variance = (1.0 - 0.5 * step**2 * k / BASE**2) ** 2 * variance + step**2 * temperature
    x = ebm.sample((20, 20), schedule=schedule)
    assert x.shape == (20, 20, 50)
    ratio = float(x.var()) / (9.0 * (1.0 - k) ** 2 * variance)
    assert abs(ratio - 1.0) < 4.5 * math.sqrt(2.0 / x.numel())
    assert ebm.sample(schedule=ep.levels.TemperatureSchedule(hot=1, cooling=0, quench=0)).shape == (50,)


def test_chains_that_leave_are_flagged_and_stay() -> None:
    steep = ep.Energy(lambda x: -1e30 * (x**4).sum(-1), torch.Size((2,)))
    found = ep.levels.anneal_temperature(
        steep, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), ep.levels.TemperatureSchedule(1.0, 3, 0, 0)
    )
    assert found.diverging.tolist() == [True, True]
    assert bool(torch.isfinite(found.x).all())
    assert found.evaluations == 3
    with pytest.warns(ep.errors.ChainWarning, match="smaller step_size"):
        gaussian((2,), -1e35).sample((3,), schedule=ep.levels.TemperatureSchedule(1.0, 9, 0, 0), denoise=False)


# --- Inpainting ---


def test_inpainting_leaves_what_is_seen() -> None:
    ebm = gaussian((1, 4, 4), 0.5)
    ebm.loc.fill_(0.5)
    ebm.scale.fill_(0.3)
    image, schedule = torch.rand(6, 1, 4, 4), ep.levels.TemperatureSchedule(hot=20, cooling=20, quench=20)
    seen = torch.zeros(1, 4, 4, dtype=torch.bool)
    seen[:, :2] = True
    found = ebm.inpaint(image, seen, schedule=schedule)
    assert torch.equal(found[:, seen], image[:, seen]), "bit for bit"
    assert bool((found != image)[:, ~seen].all())
    hidden = torch.where(seen, image, torch.nan)
    assert bool(torch.isfinite(ebm.inpaint(hidden, seen, schedule=schedule)).all()), "what is not seen doesn't matter"
    each = torch.rand(6, 1, 4, 4) < 0.5
    found = ebm.inpaint(image, each, schedule=schedule)
    assert torch.equal(found[each], image[each])


def double_root(potential: ep.Energy, x: Tensor, steps: int, temperature: float, seen: Tensor) -> Tensor:
    """The released code's inpainting at one temperature: the known pixels' noise is σ0 T^¼."""
    given = x
    for _ in range(steps):
        x = torch.where(seen, given + BASE * temperature**0.25 * torch.randn_like(x), x)
        x = x - 0.5 * 0.02**2 * ep.autodiff.gradient_only(potential, x) + 0.02 * temperature**0.5 * torch.randn_like(x)
    return torch.where(seen, given, x)


def test_seen_pixels_get_the_noise_of_their_temperature() -> None:
    """U = ½ k u² s² with s seen: the noise of s is what holds u.

    A step is u ← (1 − a s²) u + ε √T ξ with a = ½ ε² k and E s² = S, so Var u = ε² T / (2 a S − 3 a² S²), where
    S = σ0² T = 1.  4.5 standard errors, a false alarm in 150,000; with the root taken twice S is .1, and u ten times
    as wide.
    """
    k, temperature, step = 100.0, 100.0, 0.02
    potential = ep.Energy(lambda x: 0.5 * k * (x[..., 0] * x[..., 1]) ** 2, torch.Size((2,)))
    seen, start = torch.tensor([False, True]), torch.zeros(4000, 2)
    schedule = ep.levels.TemperatureSchedule(temperature, hot=500, cooling=0, quench=0)
    a, s = 0.5 * step**2 * k, BASE**2 * temperature
    truth = step**2 * temperature / (2 * a * s - 3 * (a * s) ** 2)

    def z(x: Tensor) -> float:
        return float(z_scores(x[:, 0] ** 2 - truth))

    assert abs(z(ep.levels.anneal_temperature(potential, start, schedule, seen=seen).x)) < 4.5
    assert z(double_root(potential, start, 500, temperature, seen)) > 20.0


def test_level_score_matching_trains_a_density() -> None:
    """Eight Gaussians, 300 updates: level 0 is normalized, and its KL divergence by quadrature is small.

    It was .02 to .06 nats over five seeds, and 1.24 before training.
    """
    toy = ep.toys.EightGaussians()
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6, log_snr_max=5.0))
    data = toy.sample((10_000,))
    ebm.standardize(data, isotropic=True)
    options = ep.TrainingOptions(steps=300)
    history = ep.fit(ebm, data, ep.objectives.LevelScoreMatching(), options=options, progress=False)
    assert history.records[-1].held_out < history.records[99].held_out < 1.0
    assert gap(ebm, toy, points=256) < 0.15
    assert math.isfinite(ebm.log_prob(data[:1]).item())
    ebm.tune(data[:600])
    assert float(toy.log_prob(ebm.sample((500,), steps=20)).median()) > float(toy.log_prob(data[:500]).median()) - 2.0
