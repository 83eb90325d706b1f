"""Splits are by class, seeded, and leave what is given."""

from __future__ import annotations

import pandas as pd
import pytest

from baseline import DataError, Recipe, split


def rows(counts: dict[str, int], given: str | None = None) -> pd.DataFrame:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"path": [f"{n}.jpg" for n in range(len(labels))], "label": labels, "split": given})


def test_shares_are_kept_in_every_class() -> None:
    table = split(rows({"a": 100, "b": 50, "c": 10}), Recipe(valid_share=0.1, test_share=0.2))
    counts = table.groupby(["label", "split"]).size().unstack()
    assert counts["test"].to_dict() == {"a": 20, "b": 10, "c": 2}
    assert counts["valid"].to_dict() == {"a": 8, "b": 4, "c": 1}


def test_every_class_keeps_a_training_photo() -> None:
    table = split(rows({"a": 2, "b": 3, "c": 30}), Recipe())
    assert set(table.loc[table["split"] == "train", "label"]) == {"a", "b", "c"}


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    table = rows({"a": 40, "b": 40})
    assert split(table, Recipe(seed=3)).equals(split(table, Recipe(seed=3)))
    assert not split(table, Recipe(seed=3)).equals(split(table, Recipe(seed=4)))


def test_given_splits_stay_and_only_valid_is_set_aside() -> None:
    table = pd.concat([rows({"a": 20, "b": 20}, "train"), rows({"a": 5, "b": 5}, "test")], ignore_index=True)
    done = split(table, Recipe(valid_share=0.1))
    assert (done["split"] == "test").sum() == 10 and (done.loc[40:, "split"] == "test").all()
    assert (done["split"] == "valid").sum() == 4


def test_a_given_valid_split_is_left_alone() -> None:
    table = pd.concat([rows({"a": 20, "b": 20}, "train"), rows({"a": 5, "b": 5}, "valid")], ignore_index=True)
    assert split(table, Recipe()).equals(table)


def test_photos_per_class_thins_training_photos_only() -> None:
    table = pd.concat([rows({"a": 50, "b": 5}, "train"), rows({"a": 9, "b": 9}, "test")], ignore_index=True)
    counts = split(table, Recipe(photos_per_class=20)).groupby(["label", "split"]).size()
    assert counts["a"].to_dict() == {"test": 9, "train": 18, "valid": 2}
    assert counts["b"].sum() == 14


def test_too_few_photos_to_set_any_aside_is_refused() -> None:
    with pytest.raises(DataError, match="none can be set aside"):
        split(rows({"a": 1, "b": 1}, "train"), Recipe())
