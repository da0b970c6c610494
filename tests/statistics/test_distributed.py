"""Two processes as one: the same weights in both, the same density as alone, one checkpoint, and an end for all."""

import importlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import energyppl as ep
from energyppl import distributed
from energyppl.inference.training.sources import source_of
from tests.support.processes import KILLED, run, values

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- The words ---


def words() -> dict[str, Any]:
    number = distributed.rank()
    weight = nn.Parameter(torch.zeros(3))
    unused, used_once = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((3,), float(number))
    if number == 1:
        used_once.grad = torch.full((2,), 4.0)
    distributed.average_gradients([weight, unused, used_once])
    tensors = [
        torch.full((2, 2), number),
        torch.tensor(number == 0),
        torch.zeros(0),
        torch.randn(3, 2).T * (1 + number),
    ]
    distributed.broadcast(tensors)
    with distributed.own_numbers():
        own = float(torch.rand(()))
    with distributed.alone():
        alone = distributed.world_size(), distributed.rank(), distributed.shard(7)
    return {
        "rank": number,
        "world": distributed.world_size(),
        "shard": distributed.shard(7),
        "gather": distributed.gather(torch.arange(3 + number) + 10 * number),
        "gather columns": distributed.gather(torch.full((2, 1 + number), number == 0), dim=1),
        "grads": [weight.grad, unused.grad, used_once.grad],
        "mean": distributed.mean({"a": float(number), "b": 3.0}),
        "broadcast": tensors,
        "agreed": distributed.agreed(f"process {number}"),
        "everyone": distributed.everyone(number),
        "seed": distributed.shared_seed(),
        "own": own,
        "after": float(torch.rand(())),
        "alone": alone,
    }


def test_words_mean_the_same_in_both_processes(tmp_path: Path) -> None:
    first, second = values(run(words, tmp_path))
    assert (first["rank"], second["rank"], first["world"]) == (0, 1, 2)
    assert (first["shard"], second["shard"]) == (slice(0, 3), slice(3, 7))
    assert first["own"] != second["own"]
    for both in (first, second):
        assert both["gather"].tolist() == [0, 1, 2, 10, 11, 12, 13]
        assert both["gather columns"].tolist() == [[True, False, False]] * 2
        assert both["grads"][0].tolist() == [0.5] * 3
        assert both["grads"][1] is None
        assert both["grads"][2].tolist() == [2.0] * 2
        assert both["mean"] == {"a": 0.5, "b": 3.0}
        assert both["broadcast"][0].tolist() == [[0, 0], [0, 0]]
        assert bool(both["broadcast"][1])
        assert both["agreed"] == "process 0"
        assert both["everyone"] == [0, 1]
        assert both["alone"] == (1, 0, slice(0, 7))
    assert torch.equal(first["broadcast"][3], second["broadcast"][3])
    assert (first["seed"], first["after"]) == (second["seed"], second["after"])


# --- Training ---


def rows() -> Tensor:
    return torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])


def exact() -> tuple[Tensor, Tensor, list[float]]:
    """Likelihood by quadrature, and batches that are all of the data: nothing in it is random.

    The energies at the rows are compared from process to process up to their mean: a constant in an energy has no
    gradient, and Adam moves it by what is left of rounding.
    """
    torch.manual_seed(8)
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    options = ep.TrainingOptions(steps=15, batch_size=60, evaluate_every=5)
    history = ep.fit(ebm, rows(), ep.objectives.ExactLikelihood(), held_out=rows(), options=options, progress=False)
    energies = ebm.marginal().energy(rows()).detach()
    return weights(ebm), energies - energies.mean(), list(history.column("loss"))


def without_averages() -> tuple[Tensor, Tensor, list[float]]:
    module: Any = importlib.import_module("energyppl.inference.training.run")
    module.average_gradients = lambda parameters: None
    module.end_together = lambda *parts: None
    return exact()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The mean of two halves' gradients is that of the whole, so the densities agree to rounding."""
    _, alone, losses = exact()
    (first, energies, first_losses), (second, _, _) = values(run(exact, tmp_path))
    assert torch.equal(first, second)
    assert float((energies - alone).abs().max()) < 1e-3
    assert max(abs(a - b) for a, b in zip(losses, first_losses, strict=True)) < 1e-3
    (wrong, energies, _), (other, _, _) = values(run(without_averages, tmp_path / "wrong"))  # the negative control
    assert not torch.equal(wrong, other)
    assert float((energies - alone).abs().max()) > 1e-2


def drawn(kind: str) -> tuple[list[float], list[int]]:
    """The rows of an epoch that this process draws, which are their own numbers, and how many at a time."""
    numbers = torch.arange(96.0)[:, None].expand(96, 2) + torch.tensor([0.0, 0.5])
    data: Any = numbers
    if kind == "loader of its own":
        data = DataLoader(TensorDataset(numbers), 8, sampler=DistributedSampler(TensorDataset(numbers)))
    elif kind != "tensor":
        data = {"dataset": TensorDataset(numbers), "batches": list(numbers.split(16))}[kind]
    model = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    source = source_of(model, data, None, torch.randn(10, 2), 16)
    batches = [batch[0][:, 0] for batch in (source.draw() for _ in range(6)) if batch is not None]
    return torch.cat(batches).tolist(), [len(batch) for batch in batches]


@pytest.mark.parametrize("kind", ["tensor", "dataset", "batches", "loader of its own"])
def test_each_process_draws_its_share_of_every_batch(kind: str, tmp_path: Path) -> None:
    (first, sizes), (second, others) = values(run(drawn, tmp_path, kind))
    assert sizes == others == [8] * 6
    assert sorted([*first, *second]) == [float(i) for i in range(96)]


def other_rows() -> str:
    """Rows of which a process lacks the last, or has others."""
    found = []
    for shift, count in ((0.0, 200 - distributed.rank()), (float(distributed.rank()), 200)):
        data = shift + torch.arange(2.0 * count).reshape(count, 2)
        try:
            ep.fit(ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2)), data, steps=1, progress=False)
        except ep.errors.InvalidInput as error:
            found.append(str(error))
    with pytest.raises(ep.errors.InvalidInput, match=r"init must have a row for each of the 6 chains .* got \(5, 1\)"):
        ep.sample_chains(ep.HMC(), ep.Energy(lambda x: x.square().sum(-1), (1,)), chains=6, init=torch.zeros(5, 1))
    return "; ".join(found)


def test_processes_with_other_rows_are_refused_in_all(tmp_path: Path) -> None:
    first, second = values(run(other_rows, tmp_path))
    assert first == second
    assert first.count("process 1 was given others than process 0") == 2


STEPS = 12


def persistent(path: Path | None, stop: int = STEPS) -> tuple[Tensor, Tensor, list[float]]:
    """Chains that each process has for itself, on rows that are read from a file."""
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    objective = ep.PersistentLikelihood(slots=32, num_steps=2)
    options = ep.TrainingOptions(steps=STEPS, batch_size=16, evaluate_every=4)
    training = ep.Training(ebm, rows(), objective, options=options)
    if path is not None and path.exists():
        training.load_state_dict(ep.load_checkpoint(path))
    while len(training.records) < stop:
        next(training)
    if path is not None and stop < STEPS:
        state = training.state_dict()
        if distributed.rank() == 0:
            ep.save_checkpoint(path, state)
    chains = training.state.chains.x.clone()
    training.finish()
    return weights(ebm), chains, [r.loss for r in training.records]


def test_two_processes_go_on_from_one_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = values(run(persistent, tmp_path / "whole", None))
    assert torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][1], whole[1][1])  # chains of their own
    values(run(persistent, tmp_path / "half", tmp_path / "run.ckpt", 7))
    resumed = values(run(persistent, tmp_path / "rest", tmp_path / "run.ckpt"))
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2] == other[2]
    with pytest.warns(UserWarning, match="of 2 process.es., and 1 go on from it: not bit for bit"):
        assert len(persistent(tmp_path / "run.ckpt")[2]) == STEPS


def killed(folder: Path) -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    options = ep.TrainingOptions(steps=10_000, batch_size=16, evaluate_every=4)
    training = ep.Training(ebm, rows(), ep.objectives.DenoisingScoreMatching(0.3), options=options)
    for record in training:
        if record.step == 5 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_all_with_a_sentence(tmp_path: Path) -> None:
    began = time.monotonic()
    first, second = run(killed, tmp_path, tmp_path)
    assert second.code == KILLED
    assert first.code == 0  # it raised, and was not stuck
    assert first.error.startswith("EnergyPPLError: process 0 of 2 has no answer to ")
    assert "\n" not in first.error
    assert time.monotonic() - began < 30.0


# --- Chains and log Z ---


def normal() -> ep.Energy:
    return ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))


def sampled() -> dict[str, Any]:
    found = ep.sample_chains(ep.HMC(), normal(), chains=33, draws=200, warmup=100, keep_warmup=True, progress=False)
    assert found.warmup is not None
    names = ("draws", "energy", "moved", "total_energy", "step_sizes", "notes")
    return {name: getattr(found, name) for name in names} | {"warm-up": found.warmup.draws}


def test_chains_are_shared_and_gathered(tmp_path: Path) -> None:
    """Means of 6600 draws within 4 standard errors of half as many independent ones: one run in 4000 by chance."""
    first, second = values(run(sampled, tmp_path))
    for name in ("draws", "warm-up", "energy", "moved", "total_energy", "step_sizes"):
        assert torch.equal(first[name], second[name]), name
    assert first["draws"].shape == (33, 200, 2)
    assert first["warm-up"].shape == (33, 100, 2)
    assert len({float(x) for x in first["draws"][:, -1, 0]}) == 33  # no chain is another's copy
    assert "each of 2 processes tuned a kernel of its own for its 16 and 17 chains" in first["notes"][-1]
    draws = first["draws"].double().flatten(0, 1)
    assert float(draws.mean(0).abs().max()) < 4.0 / math.sqrt(len(draws) / 2)
    assert float((draws.var(0) - 1.0).abs().max()) < 4.0 * math.sqrt(2.0 / (len(draws) / 2))


def normalized() -> list[ep.LogNormalizer]:
    base = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
    smc = ep.log_normalizer(normal(), base=base, method=ep.normalizing.SMC(particles=512, temperatures=10))
    bar = ep.log_normalizer(normal(), samples=torch.randn(1024, 2), method=ep.normalizing.BAR(particles=256))
    return [smc, bar]


def test_particles_are_shared_and_log_z_is_right(tmp_path: Path) -> None:
    """Within 5 standard errors of log 2π, which come from 16 islands: one run in 10,000 by chance, Student's t."""
    first, second = values(run(normalized, tmp_path))
    for one, other, particles in zip(first, second, (512, 256), strict=True):
        assert (one.estimate, one.lower, one.upper) == (other.estimate, other.lower, other.upper)
        assert one.standard_error < 0.2
        assert abs(one.estimate - math.log(2.0 * math.pi)) < 5.0 * one.standard_error
        assert one.trace is not None
        assert len(one.trace.forward) == particles


# --- As torchrun starts them ---

SCRIPT = """
    import sys
    import torch
    import energyppl as ep
    torch.manual_seed(4)
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    options = ep.TrainingOptions(steps=6, batch_size=16, evaluate_every=3)
    objective = ep.objectives.DenoisingScoreMatching(0.3)
    ep.fit(ebm, torch.randn(50, 2), objective, options=options, checkpoint=sys.argv[1] + "/run.ckpt", progress=False)
    print(f"{ep.distributed.rank()} of {ep.distributed.world_size()}: {ebm.checksum()}", flush=True)
"""


@pytest.mark.slow  # ten seconds, of three processes that import torch
def test_torchrun_joins_the_processes_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if " of 2: " in line)
    assert [line[:6] for line in lines] == ["0 of 2", "1 of 2"]
    assert len({line[6:] for line in lines}) == 1
    assert len(ep.load_checkpoint(tmp_path / "run.ckpt")["records"]) == 6
