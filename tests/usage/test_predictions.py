"""Some columns given the others: training, predictions, files and the commands, and what they refuse."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import energyppl as ep
from energyppl.cli.main import main
from energyppl.data import columns
from energyppl.models.conditional import ConditionalDistribution
from energyppl.tables import category_masses

N = 150


def homes(count: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rooms, kind = rng.integers(1, 6, count), np.array(["barn", "flat", "villa"])[rng.integers(3, size=count)]
    price = np.exp(3.0 + 0.2 * rooms + 0.5 * (kind == "villa") + 0.2 * rng.normal(size=count))
    return pd.DataFrame({"size": rng.uniform(20, 90, count), "kind": kind, "price": price, "sold": rooms > 2})


def trained(predict: Any, steps: int = 4, **options: Any) -> ep.tables.ConditionalTableModel:
    return ep.tables.fit_conditional(homes(), predict, steps=steps, levels=3, progress=False, **options)


def command(*arguments: Any) -> int:
    return main([*map(str, arguments), "--quiet"])


def test_a_column_of_numbers_is_predicted_in_its_units() -> None:
    model, frame = trained("price"), homes()[:7]
    assert (model.targets, model.given) == (("price",), ("size", "kind", "sold"))
    found = model.predict(frame.drop(columns="price"))
    assert found.columns.tolist() == ["price_mean", "price_median", "price_lower", "price_upper", "far"]
    assert len(found) == 7
    assert (found.price_lower < found.price_median).all()
    assert (found.price_median < found.price_upper).all()
    wider = model.predict(frame, confidence=0.98, draws=400)
    assert (wider.price_upper > found.price_upper).all()
    assert (wider.price_lower < found.price_lower).all()
    pd.testing.assert_frame_equal(model.predict(frame, seed=3), found)  # one column is integrated: no seed matters


def test_densities_integrate_to_one_in_the_table_s_units() -> None:
    model, price = trained("price"), np.exp(np.linspace(0.0, 9.0, 300))
    rows = homes().iloc[[0] * len(price)].assign(price=price)
    assert np.trapezoid(np.exp(model.log_prob(rows)), price) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("name", "values"), [("kind", ["barn", "flat", "villa"]), ("sold", [False, True])])
def test_masses_of_categories_sum_to_one_and_are_the_shares(name: str, values: list[Any]) -> None:
    model, row = trained(name, steps=150), homes().iloc[[0] * len(values)].assign(**{name: values})
    masses = np.exp(model.log_prob(row, spreads=4000))
    assert masses.sum() == pytest.approx(1.0, abs=0.02 if name == "sold" else 1e-6)
    found = model.predict(row[:1], draws=1000)
    assert found.columns.tolist() == [f"{name}_mode", f"{name}_share", "far"]
    share = masses[values.index(found[f"{name}_mode"][0])]
    assert found[f"{name}_share"][0] == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("widths", [(1.0, 2.0), (1.0,)], ids=["both", "the codes' own alone"])
def test_probabilities_of_categories_under_densities_wider_than_the_codes(
    widths: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gaussian of 1.5 to 2.5 times the codes' width between two of four codes, whose masses a million draws count.

    By the codes' own noise alone, the negative control, they are far off.
    """
    monkeypatch.setattr(category_masses, "_WIDTHS", widths)
    generator = torch.Generator().manual_seed(zlib.crc32(b"wide codes"))
    mean, width = torch.tensor([0.7, 0.4, -0.3, 0.1]), torch.tensor([0.3, 0.4, 0.5, 0.4])
    drawn = (mean + width * torch.randn(1_000_000, 4, generator=generator)).argmax(1)
    truth = torch.bincount(drawn, minlength=4).double() / len(drawn)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, width), 1)
    found = category_masses.category_probabilities(
        columns.Categories(4), lambda codes: normal.log_prob(torch.as_tensor(codes).float())[:, None]
    )[0]
    assert (float((found - truth).abs().max()) < 0.02) == (len(widths) == 2), (found, truth)


@pytest.mark.parametrize("name", ["price", "sold", "kind"])
def test_rows_far_away_are_marked_and_others_predicted(name: str) -> None:
    frame = homes()[:3].assign(size=[1e9, 40.0, 50.0])
    with pytest.warns(UserWarning, match="1 of 3 rows lie nowhere near"):
        found = trained(name).predict(frame)
    assert found.far.tolist() == [True, False, False]
    assert not found[1:].isna().to_numpy().any()
    pd.testing.assert_frame_equal(trained(name).predict(frame[1:]), found[1:], rtol=1e-5)  # float32, by other batches


@pytest.mark.parametrize("name", ["price", "sold"])
def test_rows_far_away_whose_density_is_too_sharp_are_gaps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, frame = trained(name), homes()[:5].assign(size=[40.0, 50.0, 1e9, 60.0, 70.0])
    usual, sharp = ConditionalDistribution.quantiles, [True, False]  # far rows' densities, near ones'

    def refused(given: ConditionalDistribution, probabilities: Any) -> torch.Tensor:
        if (given.is_far & sharp[0]).any() or (~given.is_far & sharp[1]).any():
            raise ep.errors.QuadratureError("too sharp")
        return usual(given, probabilities)

    monkeypatch.setattr(ConditionalDistribution, "quantiles", refused)
    with pytest.warns(UserWarning, match="1 of 5 rows lie nowhere near"):
        found = model.predict(frame)
    assert found.iloc[2, :-1].isna().all()
    assert not found.drop(index=2).isna().to_numpy().any()
    sharp[:] = [False, True]
    with pytest.raises(ep.errors.QuadratureError, match="too sharp"):
        model.predict(frame)


def test_several_columns_are_drawn_together() -> None:
    model = trained(["sold", "price"])
    found = model.sample(homes()[:3], 2, seed=1)
    assert found.dtypes.astype(str).tolist() == ["bool", "float64"]
    assert len(found) == 6
    assert model.predict(homes()[:2], draws=20).columns.tolist()[:3] == ["sold_mode", "sold_share", "price_mean"]
    assert np.isfinite(model.log_prob(homes()[:3])).all()


def test_draws_of_rows_are_independent_and_follow_the_seed() -> None:
    model, same = trained("price"), homes().iloc[[0] * 40]
    drawn = model.sample(same, seed=0).price
    assert drawn.nunique() == 40
    pd.testing.assert_series_equal(drawn, model.sample(same, seed=0).price)
    assert not drawn.equals(model.sample(same, seed=1).price)


def test_a_file_keeps_the_model(tmp_path: Path) -> None:
    model, rows = trained("kind"), homes()[:5]
    ep.tables.save(model, tmp_path / "m.ckpt")
    same = ep.tables.load(tmp_path / "m.ckpt")
    assert repr(same) == repr(model)
    pd.testing.assert_frame_equal(same.predict(rows), model.predict(rows))
    np.testing.assert_array_equal(same.log_prob(rows), model.log_prob(rows))
    tree = ep.load_checkpoint(tmp_path / "m.ckpt")
    ep.save_checkpoint(tmp_path / "m.ckpt", {**tree, "target": tree["context"]})
    with pytest.raises(ep.errors.CheckpointError, match="its transforms are of other columns"):
        ep.tables.load(tmp_path / "m.ckpt")


def test_far_rows_are_marked_and_a_warning_counts_them() -> None:
    model = trained("price")
    rows = homes()[:3].assign(size=[50.0, 1e5, -1e5])
    with pytest.warns(UserWarning, match="2 of 3 rows lie nowhere near those that the model was trained with"):
        found = model.predict(rows)
    assert found.far.tolist() == [False, True, True]
    assert np.isfinite(found.price_mean).all()


@pytest.mark.parametrize(
    ("predict", "options", "words"),
    [
        ("cost", {}, r"predict must name columns of the table; got 'cost': they are size, kind, price, sold"),
        (["price", "price"], {}, "predict must be a column's name or several different ones"),
        ([], {}, "predict must be a column's name"),
        (["price", "size"], {"columns": ["price", "size"]}, "a column must be left to predict from; got all of price"),
        ("price", {"missing": "impute"}, "needs rows without missing cells; got missing='impute'"),
    ],
)
def test_what_can_not_be_predicted_is_refused(predict: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ep.InvalidInput, match=words):
        trained(predict, **options)


def test_rows_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ep.InvalidInput, match="constant: 'size'"):
        ep.tables.fit_conditional(homes().assign(size=1.0), "price")
    gaps = homes().assign(size=[np.nan, *[1.0] * (N - 1)])
    with pytest.raises(ep.InvalidInput, match=r"missing or infinite cells in 1 of 150 rows: 'size'"):
        ep.tables.fit_conditional(gaps, "price")
    model = trained("price")
    with pytest.raises(ep.InvalidInput, match=r"missing or infinite cells in 1 of 2 rows: 'size'"):
        model.predict(gaps[:2])
    with pytest.raises(ep.InvalidInput, match=r"draws must be at least 20 for intervals of 90\.0%; got 19"):
        model.predict(homes(), draws=19)
    with pytest.raises(ep.InvalidInput, match="confidence"):
        model.predict(homes(), confidence=1.0)


# --- Commands ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a run that predicts its prices, and one of whole rows; tests must not change them."""
    place = tmp_path_factory.mktemp("homes")
    homes().to_csv(place / "t.csv", index=False)
    short = ("--steps", 4, "--levels", 3)
    assert command("fit", place / "t.csv", "--predict", "price", "--out", place / "run", *short) == 0
    assert command("fit", place / "t.csv", "--columns", "size,price", "--out", place / "whole", *short) == 0
    return place


def test_the_commands_train_and_predict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((folder / "run" / "run.json").read_text())
    assert (record["status"], record["steps"], record["settings"]["predict"]) == ("finished", 4, ["price"])
    rows = homes()[:9].drop(columns="price")
    rows.to_csv(tmp_path / "new.csv", index=False)
    arguments = ("predict", folder / "run", tmp_path / "new.csv", "--out", tmp_path / "p.csv", "--confidence", 0.8)
    assert command(*arguments) == 0
    assert "price of 9 rows, 0 of them far from" in capsys.readouterr().out
    own = ep.tables.load(folder / "run").predict(tmp_path / "new.csv", confidence=0.8)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "p.csv"), own)


def test_fit_says_how_good_predictions_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    homes().to_csv(tmp_path / "t.csv", index=False)
    rest = ("--out", tmp_path / "run", "--steps", 2, "--levels", 3)
    assert command("fit", tmp_path / "t.csv", "--predict", "price,kind", *rest) == 0
    said = capsys.readouterr().out
    assert "nats a held-out row" in said
    assert "90% intervals of price hold" in said
    assert "the predicted mean of price is off by" in said
    assert "the commonest value of kind is right in" in said


@pytest.mark.parametrize("name", ["sample", "show", "diagnose", "logz", "score", "impute"])
def test_other_commands_name_predict(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = {"score": [folder / "t.csv"], "impute": [folder / "t.csv", "--out", folder / "x.csv"]}
    rest = {"sample": ["--out", folder / "x.csv"]} | file
    assert command(name, folder / "run", *rest.get(name, [])) == 2
    assert "predicts price from other columns and has no density of whole rows: use energyppl predict" in (
        capsys.readouterr().err
    )


def test_runs_of_another_kind_or_finished_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("predict", folder / "whole", folder / "t.csv", "--out", folder / "x.csv") == 2
    assert "train one that does by energyppl fit TABLE --predict NAME" in capsys.readouterr().err
    for run, predict in (("whole", "price"), ("run", "size")):
        assert command("fit", folder / "t.csv", "--predict", predict, "--out", folder / run) == 2
        assert "holds a run of another kind, or that predicts other columns" in capsys.readouterr().err
    assert command("fit", folder / "t.csv", "--out", folder / "run", "--steps", 9) == 2
    assert "holds a finished run, which predicts price and can't go on" in capsys.readouterr().err


def test_what_fails_before_training_leaves_no_folder_that_stands_in_the_way(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = (folder / "t.csv", "--out", tmp_path / "run", "--steps", 2, "--levels", 3)
    out = tmp_path / "run"
    assert command("fit", *rest, "--device", "cuda:99") == 2
    assert "device 'cuda:99' can't be used" in capsys.readouterr().err
    assert not (out / "run.json").exists()
    out.mkdir(exist_ok=True)
    (out / "run.json").write_text('{"settings": {}, "status": "training"}')  # of a run that was killed at once
    assert command("fit", *rest, "--predict", "nothing") == 2
    assert "predict must name columns" in capsys.readouterr().err
    assert command("fit", *rest, "--predict", "price") == 0


def test_predictions_have_the_index_of_their_frame() -> None:
    rows = homes()[20:24][::-1]
    found = trained("price").predict(rows, draws=40)
    assert found.index.tolist() == rows.index.tolist()
    assert trained("price").predict(rows.reset_index(drop=True), draws=40).index.tolist() == [0, 1, 2, 3]


def test_predict_names_a_run_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "images", "settings": {"labels": null}}')
    homes()[:3].to_csv(tmp_path / "t.csv", index=False)
    assert command("predict", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "p.csv") == 2
    assert "energyppl predict is for tables" in capsys.readouterr().err
