"""Fixes: read whole or not at all, made to train and valid only; photos that do not belong leave the table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call

import baseline
from baseline import DataError, Recipe, RecipeError, mended, read_fixes
from baseline.mending import belonging


def photo_rows() -> pd.DataFrame:
    """Twelve photos of three classes, two of each class in test."""
    rows = [
        {"path": f"/here/{label}/{n}.jpg", "label": label, "split": "test" if n > 5 else "valid" if n == 5 else "train"}
        for label in ("ant", "bee", "wasp")
        for n in range(8)
    ]
    return pd.DataFrame(rows)


def written(folder: Path, *rows: tuple[str, str, str], name: str = "fixes.csv") -> Path:
    pd.DataFrame(rows, columns=["path", "label", "new_label"]).to_csv(folder / name, index=False)
    return folder / name


def test_fixes_change_and_drop_training_and_valid_photos_and_leave_test_alone(tmp_path: Path) -> None:
    table = photo_rows()
    file = written(
        tmp_path,
        ("/here/ant/0.jpg", "ant", "bee"),
        ("/here/ant/5.jpg", "ant", "wasp"),
        ("/here/bee/1.jpg", "bee", ""),
        ("/here/bee/7.jpg", "bee", "ant"),
        ("/here/wasp/2.jpg", "wasp", "wasp"),
    )
    found, words = mended(table, read_fixes([file], table))
    label = found.set_index("path")["label"]
    assert label["/here/ant/0.jpg"] == "bee" and label["/here/ant/5.jpg"] == "wasp"
    assert "/here/bee/1.jpg" not in label and len(found) == len(table) - 1
    assert found[found["split"] == "test"].equals(
        table[table["split"] == "test"].set_axis(found.index[found["split"] == "test"])
    )
    assert (
        words == "2 labels changed; 1 photos dropped; 1 test photos left as they are, so that numbers stay comparable"
    )


def test_where_there_is_no_test_split_the_valid_photos_are_left_alone(tmp_path: Path) -> None:
    table = photo_rows().query("split != 'test'").reset_index(drop=True)
    file = written(tmp_path, ("/here/ant/5.jpg", "ant", "wasp"), ("/here/ant/0.jpg", "ant", "wasp"))
    found, words = mended(table, read_fixes([file], table))
    assert found.set_index("path").loc[["/here/ant/5.jpg", "/here/ant/0.jpg"], "label"].tolist() == ["ant", "wasp"]
    assert "1 valid photos left" in words


def test_photos_that_have_moved_are_found_and_those_that_left_are_told(tmp_path: Path) -> None:
    table = photo_rows()
    file = written(tmp_path, ("/old/place/ant/0.jpg", "ant", "bee"), ("/old/place/bee/0.jpg", "bee", "ant"))
    fixes = read_fixes([file], table)
    assert fixes["path"].tolist() == ["/here/ant/0.jpg", "/here/bee/0.jpg"]
    _, words = mended(table.drop(index=0), fixes)
    assert words == "1 labels changed; 0 photos dropped; 1 photos had left the table before"


def test_later_fixes_are_for_the_labels_that_earlier_ones_leave(tmp_path: Path) -> None:
    table = photo_rows()
    one = written(tmp_path, ("/here/ant/0.jpg", "ant", "bee"), name="one.csv")
    two = written(tmp_path, ("/here/ant/0.jpg", "bee", "wasp"), ("/here/ant/1.jpg", "ant", ""), name="two.csv")
    assert read_fixes([one, two], table)["new_label"].tolist() == ["wasp", ""]
    with pytest.raises(DataError, match=r"two.csv was made for other labels: 1 of its 2 photos .*\('ant', not 'bee'\)"):
        read_fixes([two], table)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("/here/ant/77.jpg", "ant", "bee"), ("/here/ant/78.jpg", "ant", "")],
            r"names 2 photos that are not there: '/h",
        ),
        ([("/here/ant/0.jpg", "ant", "waps")], r"classes that are not there: 'waps'.* Did you mean 'wasp'"),
        ([("/here/ant/0.jpg", "ant", "bee"), ("/here/ant/0.jpg", "ant", "wasp")], "names a photo twice"),
        ([("/elsewhere/0.jpg", "ant", "bee")], "may be several of these"),
    ],
)
def test_fixes_that_do_not_fit_are_refused(tmp_path: Path, rows: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_fixes([written(tmp_path, *rows)], photo_rows())


def test_tables_that_are_no_fixes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("path,label\na.jpg,ant\n")
    with pytest.raises(DataError, match="no column 'new_label'"):
        read_fixes([tmp_path / "other.csv"], photo_rows())
    with pytest.raises(DataError, match="cannot be read"):
        read_fixes([tmp_path / "none.csv"], photo_rows())
    with pytest.raises(DataError, match="one label a photo"):
        read_fixes([tmp_path / "other.csv"], photo_rows().assign(label="ant;bee"))
    every = [(path, "wasp", "") for path in photo_rows().query("label == 'wasp' and split != 'test'")["path"]]
    with pytest.raises(DataError, match="After these fixes: No training photo of 'wasp'"):
        mended(photo_rows(), read_fixes([written(tmp_path, *every)], photo_rows()))


def test_a_second_model_decides_which_photos_belong(photos: Path, tiny: Path) -> None:
    table = baseline.photo_table(photos)
    told = baseline.load(tiny).predict(table["path"].tolist())["p_ants"].to_numpy()
    above = float(np.sort(told)[10:12].mean())
    found, left = belonging(table, Recipe(keep_if="ants", keep_model=str(tiny), keep_above=above), baseline.Show())
    assert len(left) == 11 and set(left["path"]) == set(table["path"][told < above])
    assert found["path"].tolist() == table["path"][told >= above].tolist()
    with pytest.raises(DataError, match=r"There is no class 'ant'\. Did you mean 'ants'"):
        belonging(table, Recipe(keep_if="ant", keep_model=str(tiny)), baseline.Show())
    with pytest.raises(DataError, match="none of 'ants', 'bees' is left"):
        belonging(table, Recipe(keep_if="ants", keep_model=str(tiny), keep_above=1.0), baseline.Show())
    with pytest.raises(RecipeError, match="keep_model is not given"):
        Recipe(keep_if="ants")


@pytest.mark.usefixtures("no_page")
def test_a_run_with_fixes_tells_before_and_after_on_the_same_photos(
    photos: Path, small: baseline.Recipe, tiny: Path, tmp_path: Path
) -> None:
    quick = small.changed(stages=(baseline.Stage("head", 2, 0.01),), keep_if="ants", keep_model=str(tiny))
    told = baseline.load(tiny).predict(photos)
    quick = quick.changed(keep_above=float(np.sort(told["p_ants"])[3:5].mean()))
    table = baseline.split(baseline.photo_table(photos), quick)
    ants = table[table["label"] == "ants"]
    ants = ants[ants["path"].isin(told["path"][told["p_ants"] >= quick.keep_above])]
    train, test = (ants.loc[ants["split"] == name, "path"].iloc[0] for name in ("train", "test"))
    file = written(tmp_path, (train, "ants", "bees"), (test, "ants", "bees"))
    found = baseline.make_fixed([file], photos, quick, out=tmp_path / "run", show=baseline.Show())
    assert found.before == tmp_path / "run" / "before" and found.after.folder == tmp_path / "run" / "after"
    assert found.comparison.table["photos"].nunique() == 1 and len(found.comparison.sentences) == 1
    before, after = (pd.read_csv(folder / "split.csv") for folder in (found.before, found.after.folder))
    assert len(pd.read_csv(found.before / "not_kept.csv")) == 4 and len(before) == len(table) - 4
    changed = before["label"] != after["label"]
    assert before["path"].equals(after["path"]) and len(before[changed]) <= 2
    assert set(before["path"][changed]) == {
        path for path in (train, test) if before.set_index("path")["split"][path] != "test"
    }
    again = baseline.load_recipe(found.after.folder / "manifest.json")
    assert again.fixes == (str(file),)


def test_the_command_refuses_fixes_before_it_trains(photos: Path, tmp_path: Path) -> None:
    run = partial(call, "run", photos, "--out", tmp_path / "run")
    file = written(tmp_path, ("/here/ant/77.jpg", "ant", "bees"))
    ended = run("--fixes", file)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "names 1 photos that are not there" in ended.stderr and not (tmp_path / "run").exists()
    assert "--before goes with --fixes" in run("--before", tmp_path).stderr
    assert "Give one of them" in run("--fixes", file, "--seeds", 2).stderr
