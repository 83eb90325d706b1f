"""Splits are stratified by class, seeded, and keep given splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csgraph

from baseline import Progress, Recipe, split
from baseline.data.prepare import prepare
from baseline.data.split import connected_components, resolve_split
from baseline.errors import DataError


def rows(counts: dict[str, int], given: str | None = None) -> pd.DataFrame:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"path": [f"{n}.jpg" for n in range(len(labels))], "label": labels, "split": given})


def test_shares_hold_in_every_class() -> None:
    table = split(rows({"a": 100, "b": 50, "c": 10}), Recipe().changed(valid_fraction=0.1, test_fraction=0.2))
    counts = table.groupby(["label", "split"]).size().unstack()
    assert counts["test"].to_dict() == {"a": 20, "b": 10, "c": 2}
    assert counts["valid"].to_dict() == {"a": 8, "b": 4, "c": 1}


def test_every_class_keeps_a_training_image() -> None:
    table = split(rows({"a": 2, "b": 3, "c": 30}), Recipe())
    assert set(table.loc[table["split"] == "train", "label"]) == {"a", "b", "c"}


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    table = rows({"a": 40, "b": 40})
    assert split(table, Recipe().changed(seed=3)).equals(split(table, Recipe().changed(seed=3)))
    assert not split(table, Recipe().changed(seed=3)).equals(split(table, Recipe().changed(seed=4)))


def test_given_splits_are_kept_and_only_valid_is_held_out() -> None:
    table = pd.concat([rows({"a": 20, "b": 20}, "train"), rows({"a": 5, "b": 5}, "test")], ignore_index=True)
    done = split(table, Recipe().changed(valid_fraction=0.1))
    assert (done["split"] == "test").sum() == 10 and (done.loc[40:, "split"] == "test").all()
    assert (done["split"] == "valid").sum() == 4


def test_a_given_valid_split_is_kept() -> None:
    table = pd.concat([rows({"a": 20, "b": 20}, "train"), rows({"a": 5, "b": 5}, "valid")], ignore_index=True)
    assert split(table, Recipe()).equals(table)


def test_images_per_class_subsamples_only_training_images() -> None:
    table = pd.concat([rows({"a": 50, "b": 5}, "train"), rows({"a": 9, "b": 9}, "test")], ignore_index=True)
    counts = split(table, Recipe().changed(images_per_class=20)).groupby(["label", "split"]).size()
    assert counts["a"].to_dict() == {"test": 9, "train": 18, "valid": 2}
    assert counts["b"].sum() == 14


def test_too_few_images_to_hold_out_any_are_rejected() -> None:
    with pytest.raises(DataError, match="No images can be held out"):
        split(rows({"a": 1, "b": 1}, "train"), Recipe())


def grouped(groups: dict[str, int], per_group: int = 6) -> pd.DataFrame:
    listed = [(label, f"{label}{number}") for label, count in groups.items() for number in range(count)]
    table = pd.DataFrame([row for row in listed for _ in range(per_group)], columns=["label", "group"])
    return table.assign(path=[f"{n}.jpg" for n in range(len(table))], split=None)


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_every_class_is_in_every_split(seed: int) -> None:
    table = split(grouped({"a": 20, "b": 12, "c": 4}), Recipe().changed(split="group", seed=seed))
    assert table.groupby("group")["split"].nunique().max() == 1
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0)
    assert (counts > 0).all(axis=None), counts
    assert 0.1 < counts["test"].sum() / len(table) < 0.3


def test_a_group_column_implies_a_group_split_and_given_splits_take_precedence() -> None:
    assert resolve_split(grouped({"a": 3, "b": 3}), Recipe().changed(group_col="who"))[0] == "group"
    assert resolve_split(grouped({"a": 3, "b": 3}), Recipe())[0] == "random"
    assert resolve_split(rows({"a": 3, "b": 3}, "train"), Recipe().changed(group_col="who"))[0] == "provided"
    with pytest.raises(DataError, match="These images have no groups"):
        split(rows({"a": 9, "b": 9}), Recipe().changed(split="group"))
    with pytest.raises(DataError, match=r"No training image of 'b' is left|No images can be held out"):
        split(grouped({"a": 1, "b": 1}), Recipe().changed(split="group"))


@pytest.mark.parametrize("method", ["kfold:4", "group-kfold:4"])
def test_folds_cover_every_image_once(method: str) -> None:
    table = grouped({"a": 8, "b": 8})
    parts = [split(table, Recipe().changed(split=method, fold=fold)) for fold in range(4)]
    valid = pd.concat([part[part["split"] == "valid"] for part in parts])
    assert sorted(valid["path"]) == sorted(table["path"]) and (parts[0]["split"] != "test").all()
    if "group" in method:
        assert all(part.groupby("group")["split"].nunique().max() == 1 for part in parts)


def test_more_folds_than_images_of_a_class_are_rejected() -> None:
    with pytest.raises(DataError, match=r"5 folds, but class 'b' has only 3 images. Pass at most 3"):
        split(rows({"a": 30, "b": 3}), Recipe().changed(split="kfold:5"))
    with pytest.raises(DataError, match="5 folds, but class 'a' has only 4 groups"):
        split(grouped({"a": 4, "b": 9}), Recipe().changed(split="group-kfold:5"))


@pytest.mark.parametrize("kind", ["numbers", "dates"])
def test_time_orders_the_splits(kind: str) -> None:
    table = rows({"a": 50, "b": 50}).sample(frac=1, random_state=0).reset_index(drop=True)
    number = pd.Series(range(100))
    dates = pd.Timestamp("2020-01-01") + pd.to_timedelta(number, unit="D")
    table["taken"] = (number if kind == "numbers" else dates.dt.strftime("%Y-%m-%d")).astype(str)
    done = split(table, Recipe().changed(split="time:taken"))
    assert done["split"].tolist() == ["train"] * 72 + ["valid"] * 8 + ["test"] * 20
    with pytest.raises(DataError, match=r"no column 'takn'. Did you mean 'taken'"):
        split(table, Recipe().changed(split="time:takn"))
    with pytest.raises(DataError, match="1 value of 'taken' cannot be read as a time, first 'soon'"):
        split(table.assign(taken=["soon", *table["taken"][1:]]), Recipe().changed(split="time:taken"))


def test_a_split_file_reproduces_the_split_of_moved_images(tmp_path: Path) -> None:
    table = rows({"a": 30, "b": 30}).assign(path=[f"/here/x/{n % 7}/{n}.jpg" for n in range(60)])
    done = split(table, Recipe().changed(seed=5))
    done.to_csv(tmp_path / "split.csv", index=False)
    moved = table.assign(path=table["path"].str.replace("/here", "/there")).sample(frac=1, random_state=1)
    again = split(moved, Recipe().changed(split_file=str(tmp_path / "split.csv")))
    theirs = again.assign(path=again["path"].str.replace("/there", "/here")).set_index("path")["split"]
    assert theirs.to_dict() == done.set_index("path")["split"].to_dict()
    with pytest.raises(DataError, match=r"1 of 60 images in .* not found among these images"):
        split(moved.iloc[1:], Recipe().changed(split_file=str(tmp_path / "split.csv")))
    with pytest.raises(DataError, match="cannot be read"):
        split(moved, Recipe().changed(split_file=str(tmp_path / "nowhere.csv")))


def test_multilabel_images_are_split_by_their_rarest_label() -> None:
    table = rows({"a": 40, "a;b": 10, "c": 30, "": 5})
    done = split(table, Recipe().changed(task="multilabel"))
    assert sorted(done["label"]) == sorted(table["label"])
    assert {"b"} <= {name for label in done.loc[done["split"] == "valid", "label"] for name in label.split(";")}


@pytest.mark.parametrize("seed", range(8))
def test_no_class_of_multilabel_images_loses_its_last_training_image(seed: int, tmp_path: Path) -> None:
    table = rows({"a;c": 6, "b;c": 6, "a": 2, "b": 2, "c;e": 9, "e": 9, "": 5})
    table.loc[[0, 6], "label"] = "a;c;z", "b;c;z"  # z is never alone, nor always the rarest
    for recipe in (
        Recipe().changed(seed=seed, task="multilabel"),
        Recipe().changed(seed=seed, images_per_class=2, test_fraction=0.4),
    ):
        done = split(table, recipe)
        train = {name for label in done.loc[done["split"] == "train", "label"] for name in label.split(";") if name}
        assert train == {*"abcez"} and set(done["split"]) == {"train", "valid", "test"} and "row" not in done
        done.to_csv(tmp_path / "split.csv", index=False)
        again = split(table, recipe.changed(split_file=str(tmp_path / "split.csv"), images_per_class=0))
        assert again[["path", "label", "split"]].equals(done[["path", "label", "split"]])
    given = rows({"a;b": 4, "c": 4}, "train")
    with pytest.raises(DataError, match="No training image of 'd' is left"):
        split(pd.concat([given, rows({"a;d": 1, "c": 2}, "test")], ignore_index=True), Recipe())
    assert len(split(pd.concat([given, rows({"b;c": 1, "a": 2}, "test")], ignore_index=True), Recipe())) == 11


def test_dates_are_parsed_in_one_order_or_not_at_all() -> None:
    table = rows({"a": 40, "b": 40})
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(pd.Series(range(80)) * 5, unit="D")
    european = split(table.assign(when=days.dt.strftime("%d/%m/%Y")), Recipe().changed(split="time:when"))
    assert european["split"].tolist() == sorted(european["split"], key=["train", "valid", "test"].index)
    with pytest.raises(DataError, match=r"are ambiguous: '01/01/2020' may be day/month or month/day"):
        split(table.assign(when=["01/01/2020", "02/03/2020"] * 40), Recipe().changed(split="time:when"))
    with pytest.raises(DataError, match="5 values of 'when' cannot be read as a time"):
        split(table.assign(when=days.where(days.index >= 5)), Recipe().changed(split="time:when"))


def test_duplicates_stay_together_when_split_by_time_and_subsampling_applies() -> None:
    table = rows({"a": 50, "b": 50}).assign(when=[str(n) for n in range(100)], duplicate_id=-1)
    table.loc[[0, 99], "duplicate_id"] = 7
    done = split(table, Recipe().changed(split="time:when"))
    assert done.loc[[0, 99], "split"].tolist() == ["test", "test"]
    assert (split(table, Recipe().changed(split="time:when", images_per_class=3))["split"] == "train").sum() <= 6


def test_a_split_file_that_matches_images_twice_is_rejected(tmp_path: Path) -> None:
    one = rows({"a": 20, "b": 20}).assign(path=[f"/A/{n}.jpg" for n in range(40)])
    split(one, Recipe()).assign(path=[f"/old/{n}.jpg" for n in range(40)]).to_csv(tmp_path / "split.csv", index=False)
    both = pd.concat([one, one.assign(path=one["path"].str.replace("/A", "/B"))], ignore_index=True)
    with pytest.raises(DataError, match="names 40 images, but 80 of these match"):
        split(both, Recipe().changed(split_file=str(tmp_path / "split.csv")))


def with_folds(values: list[str], **columns: list[str]) -> pd.DataFrame:
    return rows({"a": len(values) // 2, "b": len(values) // 2}).assign(kfold=values, **columns)


@pytest.mark.parametrize("method", ["kfold", "kfold:3", "kfold:kfold"])
def test_folds_that_images_come_with_are_used(method: str) -> None:
    table = with_folds(["1", "2", "3"] * 8)
    for fold in (1, 2):
        done = split(table, Recipe().changed(split=method, fold=fold))
        assert (done["fold"].astype(str) == table["kfold"]).all()
        assert set(done.loc[done["split"] == "valid", "kfold"]) == {str(fold)}
    with pytest.raises(DataError, match="There is no fold 0 in the column 'kfold': it has 1, 2, 3"):
        split(table, Recipe().changed(split=method))


def test_another_number_of_folds_is_made_and_said() -> None:
    table = with_folds(["1", "2", "3"] * 8)
    recipe = Recipe().changed(split="kfold:4")
    assert resolve_split(table, recipe) == ("kfold:4", "as given; the column 'kfold' has 3 folds, which are not used")
    assert sorted(split(table, recipe)["fold"].unique()) == [0, 1, 2, 3]


def test_any_column_gives_folds_and_negative_or_empty_ones_are_none() -> None:
    table = with_folds(["0", "1", "-1", ""] * 6, place=["sea", "hill", "hill", "wood"] * 6)
    table["split"] = [None, None, "test", None] * 6
    done = split(table, Recipe().changed(split="kfold", fold=1))
    assert done.groupby("kfold")["split"].first().to_dict() == {"-1": "test", "": "train", "0": "train", "1": "valid"}
    done = split(table, Recipe().changed(split="kfold:place", fold=2))
    assert set(done.loc[done["split"] == "valid", "place"]) == {"wood"}
    with pytest.raises(DataError, match="There is no column 'nope'"):
        split(table, Recipe().changed(split="kfold:nope"))
    with pytest.raises(DataError, match="The images come without folds"):
        split(rows({"a": 9, "b": 9}), Recipe().changed(split="kfold"))


def test_given_splits_that_are_not_used_may_lack_a_class(images: Path) -> None:
    paths = [path for name in ("ants", "bees") for path in sorted((images / name).glob("*.jpg"))[:8]]
    splits = ["train"] * 8 + ["test"] * 8
    table = pd.DataFrame({"path": paths, "label": [path.parent.name for path in paths], "split": splits})
    with pytest.raises(DataError, match="No training image of 'bees'"):
        prepare(table, "default", Progress(), preset="standard")
    prepared = prepare(table, "default", Progress(), preset="standard", split="random")
    assert set(prepared.table.loc[prepared.table["split"] == "train", "label"]) == {"ants", "bees"}


@pytest.mark.parametrize("edges", [0, 3, 60, 150, 1000])
def test_connected_components_are_those_of_scipy(edges: int) -> None:
    one, two = np.random.default_rng(edges).integers(0, 200, (2, edges))
    graph = coo_array((np.ones(edges, bool), (one, two)), shape=(200, 200))
    expected = csgraph.connected_components(graph, directed=False)[1]
    assert connected_components(one, two, 200).tolist() == expected.tolist()
    chain = np.random.default_rng(0).permutation(5000)
    assert not connected_components(chain[:-1], chain[1:], 5000).any()
