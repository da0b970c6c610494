"""Training: continuing a killed run bit for bit, stopping before it leaves, and refusing bad input."""

import multiprocessing
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep

SMALL = ep.TrainingOptions(steps=60, batch_size=64, evaluate_every=10)


def small_ebm() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16, depth=2, frequencies=4, levels=3), ep.NoiseSchedule.cosine(3))


def small_data() -> Tensor:
    return ep.toys.EightGaussians().sample((500,))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fit_is_its_iterator_and_repeats() -> None:
    data = small_data()
    results = []
    for by_hand in (False, True, False):
        torch.manual_seed(3)
        ebm = small_ebm()
        if by_hand:
            training = ep.Training(ebm, data, ep.RecoveryLikelihood(), options=SMALL)
            losses = [record.loss for record in training]
            training.finish()
        else:
            losses = list(ep.fit(ebm, data, options=SMALL, progress=False).column("loss"))
        results.append((weights(ebm), losses))
    assert len(results[0][1]) == 60
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert results[0][1] == other[1]


def test_history_has_what_was_recorded() -> None:
    history = ep.fit(small_ebm(), small_data(), options=SMALL, progress=False)
    assert "all 60 steps" in history.stopped
    assert "60 steps" in repr(history)
    for name in ("loss", "learning_rate", "gradient_norm", "energy_gap", "acceptance", "moved", "smallest_step"):
        assert torch.isfinite(torch.from_numpy(history.column(name))).all(), name
    assert int(torch.isfinite(torch.from_numpy(history.column("held_out"))).sum()) == 6


def run(folder: Path) -> None:
    torch.manual_seed(11)
    torch.set_num_threads(1)
    ebm, data = small_ebm(), small_data()
    options = ep.TrainingOptions(steps=400, batch_size=64, evaluate_every=10)
    ep.fit(ebm, data, options=options, checkpoint=folder / "run.ckpt", progress=False)
    ep.save_checkpoint(folder / "final.ckpt", dict(ebm.state_dict()))


def start(folder: Path) -> BaseProcess:
    """Train in a process of its own, forked from one that has done nothing but import this file."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, ep.fit.__module__])
    process = context.Process(target=run, args=(folder,))
    process.start()
    return process


def wait_for_checkpoint(process: BaseProcess, path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.is_alive():
        assert time.monotonic() < deadline, "no checkpoint in a minute"
        time.sleep(0.005)


def test_a_killed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at three moments, random for this purpose (the machine's timing); a torn file beside the checkpoint."""
    undisturbed = start(tmp_path / "whole")
    undisturbed.join(120)
    assert undisturbed.exitcode == 0
    truth = ep.load_checkpoint(tmp_path / "whole" / "final.ckpt")
    folder = tmp_path / "killed"
    killed = 0
    for delay in (0.0, 0.2, 0.5):
        process = start(folder)
        wait_for_checkpoint(process, folder / "run.ckpt")
        time.sleep(delay)
        process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        (folder / "run.ckpt.part").write_bytes((folder / "run.ckpt").read_bytes()[:1000])
    assert killed >= 1, "the run was too short to be killed"
    last = start(folder)
    last.join(120)
    assert last.exitcode == 0
    ours = ep.load_checkpoint(folder / "final.ckpt")
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        assert torch.equal(value, ours[name]), name


def test_a_torn_checkpoint_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    ep.fit(small_ebm(), small_data(), options=SMALL, checkpoint=path, progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    ebm = small_ebm()
    with pytest.raises(ep.errors.CheckpointError, match="truncated"):
        ep.fit(ebm, small_data(), options=SMALL, checkpoint=path, progress=False)
    assert path.read_bytes() == whole[: len(whole) // 2]


@pytest.mark.parametrize("what", ["model", "data", "options", "objective"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, what: str) -> None:
    path, data = tmp_path / "run.ckpt", small_data()
    ep.fit(small_ebm(), data, options=SMALL, checkpoint=path, progress=False)
    net = ep.MLPEnergy((2,), hidden=17 if what == "model" else 16, depth=2, frequencies=4, levels=3)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3))
    before = weights(ebm)
    with pytest.raises(ep.errors.CheckpointError, match=f"another model|other {what}|another {what}"):
        ep.fit(
            ebm,
            data + 1 if what == "data" else data,
            ep.RecoveryLikelihood(steps=4) if what == "objective" else None,
            options=ep.TrainingOptions(steps=61) if what == "options" else SMALL,
            checkpoint=path,
            progress=False,
        )
    assert torch.equal(weights(ebm), before)


class Runaway(nn.Module):
    """An objective's victim: its loss is linear in a weight, so it has no bottom."""

    event_shape = torch.Size((2,))

    def __init__(self, poison_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls, self.poison_at = 0, poison_at


class Falling:
    """A loss without a bottom, and one that turns to NaN at a step."""

    def init(self, model: Runaway) -> nn.Module:
        return nn.Module()

    def loss(self, model: Runaway, state: nn.Module, batch: Tensor) -> "ep.objectives.Loss":
        model.calls += 1
        value = -1e6 * model.weight
        if model.calls - 1 == model.poison_at:
            value = value * float("nan")
        return ep.objectives.Loss(value, {}, energy_gap=float(value.detach()))

    def measure(self, model: Runaway, state: nn.Module, data: Tensor) -> float:
        return float(model.weight.detach())


def test_divergence_names_step_and_quantity_and_leaves_good_weights(tmp_path: Path) -> None:
    model = Runaway(poison_at=25)
    options = ep.TrainingOptions(steps=100, evaluate_every=10, max_gap=1e9)
    with pytest.raises(ep.TrainingDiverged, match="step 25: the loss is nan"):
        ep.fit(model, small_data(), Falling(), options=options, checkpoint=tmp_path / "run.ckpt", progress=False)
    assert torch.isfinite(model.weight)
    kept = ep.load_checkpoint(tmp_path / "run.ckpt")
    assert len(kept["records"]) == 20
    assert torch.isfinite(kept["model"]["weight"])
    with pytest.raises(ep.TrainingDiverged, match="energy gap"):
        ep.fit(Runaway(), small_data(), Falling(), options=ep.TrainingOptions(steps=1000), progress=False)


def test_chains_that_stop_moving_are_divergence() -> None:
    ebm = small_ebm()
    stuck = ep.RecoveryLikelihood(ep.MALA(1e-9), adapt=False)
    with pytest.raises(ep.TrainingDiverged, match="step size fell"):
        ep.fit(ebm, small_data(), stuck, options=SMALL, progress=False)


def test_patience_stops_and_takes_the_best_weights() -> None:
    class Worsening(Falling):
        def measure(self, model: Runaway, state: nn.Module, data: Tensor) -> float:
            model.calls += 0
            return abs(float(model.weight.detach()) - 0.02)

    model = Runaway()
    options = ep.TrainingOptions(steps=1000, evaluate_every=5, patience=3, max_gap=1e12, learning_rate=1e-2)
    history = ep.fit(model, small_data(), Worsening(), options=options, progress=False)
    assert "worse on held-out" in history.stopped
    assert len(history.records) < 1000
    best = history.column("held_out")
    best = best[best == best].min()
    assert abs(abs(float(model.weight.detach()) - 0.02) - best) < 1e-6


BAD_DATA = {
    "integers": (torch.zeros(10, 2, dtype=torch.long), "floating point"),
    "NaN": (torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [1.0, 2.0]]), "first in row 1"),
    "empty": (torch.empty(0, 2), "at least 3 row"),
    "another shape": (torch.zeros(10, 3), r"event_shape \(2,\); got \(10, 3\)"),
    "one point": (torch.zeros(2), "one data point in each row"),
    "a constant column": (torch.cat([torch.randn(20, 1), torch.ones(20, 1)], 1), r"coordinate\(s\) \[1\]"),
    "not a tensor": ([[1.0, 2.0]], "torch tensor"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(case: str) -> None:
    data, message = BAD_DATA[case]
    ebm = small_ebm()
    before = weights(ebm)
    with pytest.raises(ep.InvalidInput, match=message):
        ep.fit(ebm, data, options=SMALL, progress=False)  # type: ignore[arg-type]
    assert torch.equal(weights(ebm), before)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ep.InvalidInput, match="can't be used"):
        ep.fit(small_ebm(), small_data(), device=device, options=SMALL, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"ema": 1.0}, "ema must lie"),
    ],
)
def test_bad_options_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        ep.TrainingOptions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"level0_fraction": 1.0}, "level0_fraction must lie"),
        ({"kernel": ep.Langevin(0.1)}, "adapt=False"),
    ],
)
def test_bad_objectives_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        ep.RecoveryLikelihood(**settings)  # type: ignore[arg-type]
