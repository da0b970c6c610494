"""Data that don't lie in memory: mapped files, datasets, loaders and iterables train, resume and hold rows out."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import energyppl as ep
from energyppl._checks import as_points
from energyppl.errors import CheckpointError
from energyppl.inference.training import parts
from energyppl.inference.training.parts import WindowedBatches
from energyppl.inference.training.sources import source_of

OPTIONS = ep.TrainingOptions(steps=12, batch_size=16, evaluate_every=4)
COUNT = 101  # no multiple of the batch


QUICK = ep.objectives.DenoisingScoreMatching(0.3)


def model() -> ep.EBM:
    return ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))


def with_classes() -> ep.RecoveryEBM:
    net = ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2, levels=4, classes=3)
    return ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels=3))


def rows() -> Tensor:
    """The second column counts, so that a row is known by it."""
    values = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0))
    values[:, 1] = torch.arange(COUNT)
    return values


def mapped(folder: Path, values: Tensor | None = None) -> "np.memmap[Any, Any]":
    np.save(folder / "rows.npy", (rows() if values is None else values).numpy())
    array: np.memmap[Any, Any] = np.load(folder / "rows.npy", mmap_mode="r")
    return array


class Shuffled:
    """Batches in another order in each pass, as torch's random numbers say."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from rows()[torch.randperm(COUNT)].split(16)


class Streamed(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(rows())


def own_generator() -> "DataLoader[Any]":
    return DataLoader(TensorDataset(rows()), 16, shuffle=True, generator=torch.Generator().manual_seed(7))


def weighted() -> "DataLoader[Any]":
    sampler = torch.utils.data.WeightedRandomSampler(torch.ones(COUNT), COUNT)
    return DataLoader(TensorDataset(rows()), 16, sampler=sampler)


def sampler_with_generator() -> "DataLoader[Any]":
    pairs = TensorDataset(rows())
    return DataLoader(pairs, 16, sampler=RandomSampler(pairs, generator=torch.Generator().manual_seed(7)))


def weighted_with_generator() -> "DataLoader[Any]":
    own = torch.Generator().manual_seed(7)
    sampler = torch.utils.data.WeightedRandomSampler(torch.ones(COUNT), COUNT, generator=own)
    return DataLoader(TensorDataset(rows()), 16, sampler=sampler)


# What is made of a folder, and whether held-out rows must come along.
SOURCES: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "tensor": (lambda _: rows(), False),
    "array": (lambda _: rows().numpy(), False),
    "table": (lambda _: pd.DataFrame(rows().numpy()), False),
    "mapped array": (mapped, False),
    "view of a mapped array": (lambda folder: np.asarray(mapped(folder)), False),
    "dataset": (lambda _: TensorDataset(rows()), False),
    "iterable dataset": (lambda _: Streamed(), False),
    "loader": (lambda _: DataLoader(TensorDataset(rows()), batch_size=16), False),
    "shuffled loader": (lambda _: DataLoader(TensorDataset(rows()), batch_size=16, shuffle=True), False),
    "loader with a generator": (lambda _: own_generator(), False),
    "sampler with a generator": (lambda _: sampler_with_generator(), False),
    "weighted loader": (lambda _: weighted(), True),
    "weighted loader with a generator": (lambda _: weighted_with_generator(), True),
    "list": (lambda _: list(rows().split(16)), False),
    "list of arrays": (lambda _: [part.numpy() for part in rows().split(16)], False),
    "shuffled batches": (lambda _: Shuffled(), True),
}
each_source = pytest.mark.parametrize("name", SOURCES)


def held_out_for(name: str) -> Tensor | None:
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(1)) if SOURCES[name][1] else None


def training(name: str, folder: Path) -> ep.Training:
    torch.manual_seed(5)
    ebm = model()
    return ep.Training(ebm, SOURCES[name][0](folder), QUICK, held_out=held_out_for(name), options=OPTIONS)


@each_source
def test_a_run_continued_within_an_epoch_is_the_same_run(name: str, tmp_path: Path) -> None:
    alone = training(name, tmp_path)
    for _ in range(9):  # an epoch has at most seven batches
        next(alone)
    ep.save_checkpoint(tmp_path / "half.ckpt", alone.state_dict())
    list(alone)
    alone.finish()
    other = training(name, tmp_path)
    torch.manual_seed(1)  # the other process is elsewhere in its stream
    other.load_state_dict(ep.load_checkpoint(tmp_path / "half.ckpt"))
    assert len(list(other)) == 3
    other.finish()
    assert [r.loss for r in other.records] == [r.loss for r in alone.records]
    assert other.model.checksum() == alone.model.checksum()


@each_source
def test_held_out_rows_are_never_drawn_and_all_others_are(name: str, tmp_path: Path) -> None:
    source = source_of(model(), SOURCES[name][0](tmp_path), None, held_out_for(name), 16)
    drawn = [source.draw() for _ in range(70)]  # ten epochs and more: each leaves out less than a batch, at random
    seen = {int(number) for batch in drawn if batch is not None for number in batch[0][:, 1]}
    if SOURCES[name][1]:
        assert len(seen) > COUNT // 2
        return
    held_out = {int(number) for number in source.held_out[:, 1]}
    assert held_out
    assert seen.isdisjoint(held_out)
    assert seen | held_out == set(range(COUNT))


@each_source
def test_any_source_standardizes_and_trains(name: str, tmp_path: Path) -> None:
    ebm = model()
    history = ep.fit(
        ebm, SOURCES[name][0](tmp_path), QUICK, held_out=held_out_for(name), options=OPTIONS, progress=False
    )
    assert np.isfinite(history.column("loss")).all()
    assert int(np.isfinite(history.column("held_out")).sum()) == 3
    assert abs(float(ebm.loc[1]) - 50.0) < 10.0
    assert 20.0 < float(ebm.scale[1]) < 40.0


def test_an_iterator_trains_to_its_end_and_goes_on_with_a_warning(tmp_path: Path) -> None:
    def batches(count: int) -> Iterator[Tensor]:
        for _ in range(count):
            yield torch.randn(16, 2)

    held_out = torch.randn(30, 2)
    ebm = model()
    history = ep.fit(
        ebm, batches(5), QUICK, held_out=held_out, options=OPTIONS, checkpoint=tmp_path / "c", progress=False
    )
    assert len(history.records) == 5
    assert "the data ended after 5 steps" in history.stopped
    assert np.isfinite(history.records[-1].held_out)

    run = ep.Training(model(), batches(400), QUICK, options=OPTIONS)
    assert run._source.held_out.shape == (640, 2)  # the first tenth of the batches
    for _ in range(3):
        next(run)
    state = run.state_dict()
    other = ep.Training(model(), batches(400), QUICK, options=OPTIONS)
    with pytest.warns(UserWarning, match="the generator can't be read again .* not bit for bit"):
        other.load_state_dict(state)
    assert torch.equal(other._source.held_out, run._source.held_out)
    assert len(list(other)) == 9


def test_an_iterable_that_changes_between_processes_says_so() -> None:
    batches = list(rows().split(16))
    run = ep.Training(model(), batches, QUICK, held_out=rows()[:9], options=OPTIONS)
    for _ in range(3):
        next(run)
    other = ep.Training(model(), batches[::-1], QUICK, held_out=rows()[:9], options=OPTIONS)
    with pytest.warns(UserWarning, match="gives other batches than before"):
        other.load_state_dict(run.state_dict())


OF_ROWS: dict[str, Callable[[Path, Tensor], Any]] = {
    "tensor": lambda _, x: x,
    "mapped array": mapped,
    "dataset": lambda _, x: TensorDataset(x),
}


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_run_on_the_same_numbers_in_other_places_is_another_run(name: str, axis: int, tmp_path: Path) -> None:
    aside = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    run = ep.Training(model(), OF_ROWS[name](tmp_path, rows()), QUICK, held_out=aside, options=OPTIONS)
    state = run.state_dict()
    for data, held_out in ((rows().flip(axis), aside), (rows(), aside.flip(axis))):
        other = ep.Training(model(), OF_ROWS[name](tmp_path, data), QUICK, held_out=held_out, options=OPTIONS)
        with pytest.raises(CheckpointError, match="made with other data"):
            other.load_state_dict(state)


@pytest.mark.parametrize("axis", [0, 1])
def test_batches_with_the_same_held_out_numbers_in_other_places_are_of_another_run(axis: int) -> None:
    aside, batches = torch.randn(20, 2), list(rows().split(16))
    state = ep.Training(model(), batches, QUICK, held_out=aside, options=OPTIONS).state_dict()
    other = ep.Training(model(), batches, QUICK, held_out=aside.flip(axis), options=OPTIONS)
    with pytest.raises(CheckpointError, match="made with other data"):
        other.load_state_dict(state)


def test_a_loader_keeps_the_order_of_its_samplers_own_generator() -> None:
    orders = []
    for seed in (1, 2):  # torch's own random numbers say nothing
        torch.manual_seed(seed)
        source = source_of(model(), sampler_with_generator(), None, None, 16)
        drawn = [source.draw() for _ in range(9)]
        orders.append([int(number) for batch in drawn if batch is not None for number in batch[0][:, 1]])
    assert orders[0] == orders[1]


def test_labels_come_along(tmp_path: Path) -> None:
    labels = torch.arange(COUNT) % 3
    values = torch.stack([labels.float(), torch.randn(COUNT)], 1)  # the first column is the label
    pairs = TensorDataset(values, labels)
    sources: dict[str, Any] = {
        "tensor": (values, labels),
        "arrays": (values.numpy(), labels.numpy()),
        "mapped array": (mapped(tmp_path, values), labels),
        "dataset": (pairs, None),
        "loader": (DataLoader(pairs, 16, shuffle=True), None),
        "loader with workers": (DataLoader(pairs, 16, shuffle=True, num_workers=2), None),
        "list": ([(values[i : i + 16], labels[i : i + 16]) for i in range(0, COUNT, 16)], None),
    }
    for name, (data, given) in sources.items():
        source = source_of(with_classes(), data, given, None, 16)
        for _ in range(8):
            drawn = source.draw()
            assert drawn is not None, name
            assert torch.equal(drawn[0][:, 0].long(), drawn[1]), name
        run = ep.Training(with_classes(), data, labels=given, options=OPTIONS)
        assert next(run).step == 0, name


def test_whole_numbers_in_arrays_and_tables_are_taken_as_floats_and_as_labels() -> None:
    counts, labels = np.arange(2 * COUNT).reshape(COUNT, 2), np.arange(COUNT) % 3
    for data in (counts, counts.astype(">i2"), pd.DataFrame(counts), counts.astype(np.float16)):
        source = source_of(with_classes(), data, pd.Series(labels), counts[:5], 16)
        assert torch.equal(source.sample, torch.as_tensor(counts).float())
        assert torch.equal(source.held_out, torch.as_tensor(counts[:5]).float())
        drawn = source.draw()
        assert drawn is not None
        assert torch.equal(drawn[0][:, 0].long() // 2 % 3, drawn[1])


def test_an_array_is_copied_only_where_it_must_be() -> None:
    for dtype in (np.float32, np.float64):
        array = np.zeros((4, 2), dtype)
        assert as_points("x", array).data_ptr() == array.ctypes.data
        array.flags.writeable = False  # torch would write where numpy must not
        assert as_points("x", array).data_ptr() != array.ctypes.data
    assert as_points("x", np.zeros((4, 2), ">f4")).dtype == torch.float32
    assert as_points("x", np.zeros((4, 2))[::-1]).shape == (4, 2)


def test_contexts_come_along(tmp_path: Path) -> None:
    contexts = torch.randn(COUNT, 3)
    values = torch.stack([contexts[:, 0], torch.randn(COUNT)], 1)  # the first column is the context's
    pairs = TensorDataset(values, contexts)
    sources: dict[str, Any] = {
        "tensors": (values, contexts),
        "mapped array": (mapped(tmp_path, values), contexts),
        "dataset": pairs,
        "loader": DataLoader(pairs, 16, shuffle=True),
        "list": [(values[i : i + 16], contexts[i : i + 16]) for i in range(0, COUNT, 16)],
    }
    for name, data in sources.items():
        net = ep.MLPEnergy((2,), hidden=8, depth=1, context_shape=(3,))
        ebm = ep.models.ConditionalEBM(net, ep.NoiseSchedule.cosine(levels=3))
        source = source_of(ebm, data, None, None, 16)
        for _ in range(8):
            drawn = source.draw()
            assert drawn is not None, name
            assert drawn[1] is not None, name
            assert torch.equal(drawn[0][:, 0], drawn[1][:, 0]), name
        assert source.held_out_contexts is not None
        assert torch.equal(source.held_out[:, 0], source.held_out_contexts[:, 0]), name
        run = ep.Training(ebm, data, options=OPTIONS)
        assert next(run).step == 0, name


class Items(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


GOOD, NAN = torch.zeros(8, 2), torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no batch": (lambda _: [], "the list ended at once"),
    "an exhausted generator": (lambda _: iter(()), "ended at once"),
    "one batch": (lambda _: [GOOD], r"ended with 0 row\(s\) to train on after 8 rows that were set aside"),
    "a changed shape": (lambda _: [GOOD, GOOD, torch.zeros(8, 3)], r"batch 2 of the list must end in event_shape"),
    "a changed dtype": (lambda _: [GOOD, GOOD, GOOD.double()], "batch 2 of the list must be as those before"),
    "labels that come and go": (lambda _: [GOOD, GOOD, (GOOD, torch.zeros(8).long())], "batch 2 .* got .* with labels"),
    "a batch that is not finite": (lambda _: [GOOD, GOOD, NAN], "batch 2 of the list must be finite; .* in row 1"),
    "whole numbers": (lambda _: [GOOD.long()], "floating point"),
    "rows of rows": (lambda _: [[1.0, 2.0]], "torch tensor"),
    "three things": (lambda _: [(GOOD, GOOD, GOOD)], r"a pair \(rows, labels\); got 3 things"),
    "a text": (lambda _: "rows.npy", "got str"),
    "another order in each pass": (lambda _: Shuffled(), "in another order in each pass"),
    "a table of words": (lambda _: pd.DataFrame({"a": ["x", "y"]}), "data must hold numbers alone; got dtype object"),
    "a mapped array of whole numbers": (lambda p: mapped(p, torch.zeros(9, 2).int()), "floating point; got int32"),
    "a mapped array that is not finite": (lambda p: mapped(p, NAN[[0, 0, 0, 1]]), "array must be finite; .* row 3"),
    "a mapped array of two rows": (lambda p: mapped(p, GOOD[:2]), r"at least 3 row\(s\); got 2"),
    "a mapped array of another shape": (lambda p: mapped(p, torch.zeros(9, 3)), r"event_shape \(2,\)"),
    "an empty dataset": (lambda _: Items(), r"the dataset must have at least 3 row\(s\); got 0"),
    "items of several shapes": (lambda _: Items(*GOOD, torch.zeros(3)), "items of the dataset must be alike; item 8"),
    "an item that is not finite": (lambda _: Items(*GOOD, *NAN), "the dataset must be finite; .* row 9"),
    "a small loader": (lambda _: DataLoader(Items(*GOOD[:2])), "at least 3 items; got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    with pytest.raises(ep.InvalidInput, match=message) as caught:
        ep.fit(model(), make(tmp_path), QUICK, options=OPTIONS, progress=False)
    assert "\n" not in str(caught.value)


def test_labels_beside_what_brings_its_own_are_refused() -> None:
    with pytest.raises(ep.InvalidInput, match="let it give pairs"):
        ep.fit(with_classes(), [GOOD] * 4, labels=torch.zeros(8).long(), options=OPTIONS)
    with pytest.raises(ep.InvalidInput, match="3 classes, and the rows came without labels"):
        ep.fit(with_classes(), [GOOD] * 4, options=OPTIONS)


def test_a_sorted_file_is_standardized_by_rows_from_everywhere(tmp_path: Path) -> None:
    """65,536 of 200,000 rows, whose quantiles the thousand places know to a thousandth."""
    values = torch.linspace(0.0, 1.0, 200_000)[:, None].expand(-1, 2) ** torch.tensor([1.0, 3.0])
    source = source_of(model(), mapped(tmp_path, values), None, None, 256)
    assert 60_000 < len(source.sample) <= 65_536
    assert source.held_out.shape == (4096, 2)
    for rows_, tolerance in ((source.sample, 2e-3), (source.held_out, 0.02)):  # the latter are drawn: 4 standard errors
        assert float((rows_.mean(0) - torch.tensor([1 / 2, 1 / 4])).abs().max()) < tolerance
        assert float((rows_.std(0) - values.std(0)).abs().max()) < tolerance


def test_workers_that_last_are_read_anew_in_each_pass() -> None:
    pairs = TensorDataset(rows())
    loader: DataLoader[Any] = DataLoader(pairs, 16, shuffle=True, num_workers=1, persistent_workers=True)
    source = source_of(model(), loader, None, None, 16)
    seen = [{int(n) for batch in (source.draw() for _ in range(6)) if batch for n in batch[0][:, 1]} for _ in range(2)]
    assert seen[0] == seen[1] == set(range(COUNT)) - {int(n) for n in source.held_out[:, 1]}


@pytest.mark.parametrize(("count", "windows"), [(1000, 1), (5000, 5), (20_011, 20)])
def test_windows_visit_each_row_once_an_epoch(count: int, windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 64 rows and windows of 1000: what is left of a window is less than a batch."""
    monkeypatch.setattr(parts, "_BLOCK", 64 * 8)
    monkeypatch.setattr(parts, "_WINDOW", 1000 * 8)
    left_out = np.arange(5, count, 17)
    batches = WindowedBatches(count, 50, left_out, 8)
    assert batches._windows == windows
    for _ in range(2):
        drawn = [batches.draw()]
        while (batches._window, batches._position) != (windows - 1, len(batches._rows) // 50 * 50):
            drawn.append(batches.draw())
        seen = np.concatenate(drawn)
        assert len(np.unique(seen)) == len(seen) >= count - len(left_out) - 50 * windows
        assert not np.isin(seen, left_out).any()
    spread = [np.ptp(batch) / count for batch in itertools.islice(drawn, 10)]
    assert min(spread) > 0.5  # a batch comes from everywhere
