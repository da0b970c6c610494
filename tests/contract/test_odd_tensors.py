"""Tensors and arrays whose numbers are not where functions look for them: refused in a sentence, or taken as meant."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.errors import InvalidInput

ROWS = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
ODD: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": ROWS.to_sparse,
    "sparse rows": ROWS.to_sparse_csr,
    "without numbers": lambda: ROWS.to("meta"),
    "quantized": lambda: torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8),
    "complex": lambda: ROWS + 0j,
}


class Bowl(nn.Module):
    """½ w |x|²."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor, level: Any = None) -> torch.Tensor:
        energy: torch.Tensor = 0.5 * (x * x).sum(-1) + 0.1 * self.weight(x).square().sum(-1)
        return energy


def model() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(Bowl(), ep.NoiseSchedule.cosine(levels=2))


LOG_Z = ep.LogNormalizer(0.0, 0.1, -0.2, 0.2, 10, "exact")
TAKERS: dict[str, Callable[[Any], Any]] = {
    "fit": lambda x: ep.fit(model(), x, steps=1, progress=False),
    "held out": lambda x: ep.fit(model(), ROWS, held_out=x, steps=1, progress=False),
    "standardize": lambda x: model().standardize(x),
    "log_prob": lambda x: model().log_prob(x),
    "energy": lambda x: model().marginal().energy(x),
    "energy_and_grad": lambda x: ep.energy_and_grad(Bowl(), x),
    "init": lambda x: ep.sample_chains(ep.MALA(0.1), Bowl(), chains=60, draws=1, warmup=0, init=x, progress=False),
    "samples": lambda x: ep.log_normalizer(Bowl(), samples=x),
    "entropy": lambda x: ep.evaluation.entropy(ep.EnergyDistribution(Bowl()), x, LOG_Z),
    "a test": lambda x: ep.metrics.energy_distance_test(x, ROWS),
    "a table": lambda x: ep.data.table_from_rows(x),
    "images": lambda x: ep.data.images_from_array(x),
    "an estimator": lambda x: ep.estimator.EnergyDensity().fit(x),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:.*quantize")  # torch's own deprecations of quantized tensors
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("taker", TAKERS)
def test_a_tensor_of_another_kind_is_refused_in_a_sentence(taker: str, kind: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        TAKERS[taker](ODD[kind]())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("taker", ["fit", "a table", "images", "an estimator"])
def test_what_a_mask_hides_is_missing(taker: str) -> None:
    """And not what lies beneath it; without hidden cells a masked array is an array."""
    array = np.ma.masked_array(ROWS.numpy().astype(np.float64), mask=np.zeros((60, 2), bool))
    if taker not in ("images", "an estimator"):
        TAKERS[taker](array)
    array[3, 1] = np.ma.masked
    with pytest.raises(InvalidInput, match=r"NaN|missing|finite"):
        TAKERS[taker](array if taker != "images" else array.reshape(-1, 4, 5))


def test_a_masked_cell_has_no_density() -> None:
    array = np.ma.masked_array(ROWS.numpy().astype(np.float64), mask=np.zeros((60, 2), bool))
    array[3, 1] = np.ma.masked
    found = model().log_prob(array)
    assert torch.isnan(found).nonzero().tolist() == [[3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_where_its_digits_do_not_do(dtype: torch.dtype) -> None:
    net = Bowl().to(dtype)
    for use in (
        lambda: ep.log_normalizer(net),
        lambda: ep.log_normalizer(net, samples=ROWS.to(dtype)),
        lambda: ep.adapt(ep.HMC(), net, ROWS.to(dtype), steps=4),
        lambda: ep.sample_chains(ep.HMC(), net, chains=4, draws=2, warmup=2, progress=False),
    ):
        with pytest.raises(InvalidInput, match=f"needs float32 or float64; got weights or points in {dtype}"):
            use()


def test_points_of_another_dtype_than_the_weights_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"x must be torch.float32 like the network's weights; got torch.float64"):
        ep.energy_and_grad(Bowl(), ROWS.double())
    with pytest.raises(InvalidInput, match=r"value must be torch.float32 like .* got torch.float16"):
        ep.EnergyDistribution(Bowl()).energy(ROWS.half())


def test_points_elsewhere_than_the_weights_are_named() -> None:
    with pytest.raises(InvalidInput, match="value must be on meta like the network's weights; got cpu: move one"):
        ep.EBM(ep.MLPEnergy((2,), hidden=4, levels=1)).to("meta").marginal().energy(ROWS)


def test_the_process_s_bounds_take_rows_of_any_dtype() -> None:
    found = ep.normalizing.process_log_likelihood(model(), ROWS[:3].double(), particles=4, temperatures=2, steps=1)
    assert math.isfinite(found.lower.value)


class Detached(Bowl):
    """A network that cuts the graph."""

    def forward(self, x: torch.Tensor, level: Any = None) -> torch.Tensor:
        return super().forward(x, level).detach()


def test_a_loss_without_a_gradient_is_refused() -> None:
    ebm = ep.RecoveryEBM(Detached(), ep.NoiseSchedule.cosine(levels=2))
    with pytest.raises(InvalidInput, match=r"the loss must depend on the weights; .* leave .detach\(\), numpy"):
        ep.fit(ebm, ROWS, steps=1, progress=False)


def test_numbers_that_a_network_reads_count_as_its_weights_do() -> None:
    """Of a density whose log Z is known: another temperature, or a tensor that is no buffer."""
    ebm = ep.EBM(Scaled())
    for change in (lambda net: setattr(net, "factor", 2.0), lambda net: net.plain.fill_(3.0)):
        before = ebm.log_prob(ROWS)
        change(ebm.net)
        after, fresh = ebm.log_prob(ROWS), ep.EBM(ebm.net).log_prob(ROWS)
        torch.testing.assert_close(after, fresh)
        assert not torch.allclose(after, before)


class Scaled(Bowl):
    """With numbers that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.plain = 1.0, torch.ones(())

    def forward(self, x: torch.Tensor, level: Any = None) -> torch.Tensor:
        return self.factor * self.plain * super().forward(x, level)
