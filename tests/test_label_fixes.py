"""Label fixes are read completely or not at all, applied to train and valid only, and images can be left out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call

import baseline
from baseline.data.label_fixes import apply_fixes, read_fixes
from baseline.errors import DataError
from baseline.experiments.before_after import compare_fixes
from baseline.inference.filter import filter_by_model


def image_rows() -> pd.DataFrame:
    """Twelve images of three classes, two of each class in test."""
    rows = [
        {"path": f"/here/{label}/{n}.jpg", "label": label, "split": "test" if n > 5 else "valid" if n == 5 else "train"}
        for label in ("ant", "bee", "wasp")
        for n in range(8)
    ]
    return pd.DataFrame(rows)


def write_fixes(folder: Path, *rows: tuple[str, str, str], name: str = "fixes.csv") -> Path:
    pd.DataFrame(rows, columns=["path", "label", "new_label"]).to_csv(folder / name, index=False)
    return folder / name


def test_fixes_change_and_drop_training_and_valid_images_and_leave_test_alone(tmp_path: Path) -> None:
    table = image_rows()
    file = write_fixes(
        tmp_path,
        ("/here/ant/0.jpg", "ant", "bee"),
        ("/here/ant/5.jpg", "ant", "wasp"),
        ("/here/bee/1.jpg", "bee", ""),
        ("/here/bee/7.jpg", "bee", "ant"),
        ("/here/wasp/2.jpg", "wasp", "wasp"),
    )
    result, summary = apply_fixes(table, read_fixes([file], table))
    label = result.set_index("path")["label"]
    assert label["/here/ant/0.jpg"] == "bee" and label["/here/ant/5.jpg"] == "wasp"
    assert "/here/bee/1.jpg" not in label and len(result) == len(table) - 1
    assert result[result["split"] == "test"].equals(
        table[table["split"] == "test"].set_axis(result.index[result["split"] == "test"])
    )
    assert summary == "2 labels changed; 1 image dropped; 1 test image left unchanged, so that scores stay comparable"


def test_where_there_is_no_test_split_the_valid_images_are_left_alone(tmp_path: Path) -> None:
    table = image_rows().query("split != 'test'").reset_index(drop=True)
    file = write_fixes(tmp_path, ("/here/ant/5.jpg", "ant", "wasp"), ("/here/ant/0.jpg", "ant", "wasp"))
    result, summary = apply_fixes(table, read_fixes([file], table))
    assert result.set_index("path").loc[["/here/ant/5.jpg", "/here/ant/0.jpg"], "label"].tolist() == ["ant", "wasp"]
    assert "1 valid image left unchanged" in summary


def test_moved_images_are_matched_and_images_no_longer_in_the_table_are_counted(tmp_path: Path) -> None:
    table = image_rows()
    file = write_fixes(tmp_path, ("/old/place/ant/0.jpg", "ant", "bee"), ("/old/place/bee/0.jpg", "bee", "ant"))
    fixes = read_fixes([file], table)
    assert fixes["path"].tolist() == ["/here/ant/0.jpg", "/here/bee/0.jpg"]
    _, summary = apply_fixes(table.drop(index=0), fixes)
    assert summary == "1 label changed; 0 images dropped; 1 image skipped, no longer in the table"


def test_later_fixes_apply_to_the_labels_that_earlier_ones_leave(tmp_path: Path) -> None:
    table = image_rows()
    one = write_fixes(tmp_path, ("/here/ant/0.jpg", "ant", "bee"), name="one.csv")
    two = write_fixes(tmp_path, ("/here/ant/0.jpg", "bee", "wasp"), ("/here/ant/1.jpg", "ant", ""), name="two.csv")
    assert read_fixes([one, two], table)["new_label"].tolist() == ["wasp", ""]
    with pytest.raises(
        DataError, match=r"two.csv was made for other labels: 1 of its 2 images differ, .*\('ant', not 'bee'\)"
    ):
        read_fixes([two], table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("/here/ant/77.jpg", "ant", "bee"), ("/here/ant/78.jpg", "ant", "")],
            r"names 2 images not found here: '/h",
        ),
        ([("/here/ant/0.jpg", "ant", "waps")], r"classes that do not exist: 'waps'.* Did you mean 'wasp'"),
        ([("/here/ant/0.jpg", "ant", "bee"), ("/here/ant/0.jpg", "ant", "wasp")], "lists an image twice"),
        ([("/elsewhere/0.jpg", "ant", "bee")], "match several of these"),
    ],
)
def test_fixes_that_do_not_match_the_table_are_rejected(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_fixes([write_fixes(tmp_path, *rows)], image_rows())


def test_tables_that_are_not_fixes_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("path,label\na.jpg,ant\n")
    with pytest.raises(DataError, match="no column 'new_label'"):
        read_fixes([tmp_path / "other.csv"], image_rows())
    with pytest.raises(DataError, match="cannot be read"):
        read_fixes([tmp_path / "none.csv"], image_rows())
    with pytest.raises(DataError, match="one label per image"):
        read_fixes([tmp_path / "other.csv"], image_rows().assign(label="ant;bee"))
    rows = [(path, "wasp", "") for path in image_rows().query("label == 'wasp' and split != 'test'")["path"]]
    with pytest.raises(DataError, match="After these fixes: No training image of 'wasp'"):
        apply_fixes(image_rows(), read_fixes([write_fixes(tmp_path, *rows)], image_rows()))


def test_a_second_model_decides_which_images_belong(images: Path, tiny: Path) -> None:
    table = baseline.image_table(images)
    probability = baseline.load(tiny).predict(table["path"].tolist())["p_ants"].to_numpy()
    above = float(np.sort(probability)[10:12].mean())
    result, removed = filter_by_model(table, tiny, "ants", above)
    assert len(removed) == 11 and set(removed["path"]) == set(table["path"][probability < above])
    assert result["path"].tolist() == table["path"][probability >= above].tolist()
    with pytest.raises(DataError, match=r"There is no class 'ant'\. Did you mean 'ants'"):
        filter_by_model(table, tiny, "ant")
    with pytest.raises(DataError, match="none of 'ants', 'bees' is left"):
        filter_by_model(table, tiny, "ants", 1.0)


def test_the_filter_command_writes_a_table_that_a_run_reads(images: Path, tiny: Path, tmp_path: Path) -> None:
    table = baseline.image_table(images)
    probability = baseline.load(tiny).predict(table["path"].tolist())["p_ants"].to_numpy()
    above = float(np.sort(probability)[10:12].mean())
    out = tmp_path / "kept.csv"
    options = ("--model", tiny, "--keep", "ants", "--above", above, "--out", out)
    ended = call("filter", images, *options)
    assert ended.returncode == 0 and ended.stdout.strip() == str(out), ended.stderr
    kept = baseline.image_table(out)
    assert sorted(kept["path"]) == sorted(table["path"][probability >= above])
    left_out = pd.read_csv(tmp_path / "kept-left-out.csv")
    assert len(left_out) == 11 and left_out["probability"].is_monotonic_increasing
    again = call("filter", images, *options)
    assert again.returncode == 2 and "already exists" in again.stderr


def test_a_run_with_fixes_compares_before_and_after_on_the_same_images(
    images: Path, small: baseline.Recipe, tiny: Path, tmp_path: Path
) -> None:
    quick = small.changed(stages=(baseline.Stage("head", 2, 0.01, augment=False),))
    table = baseline.split(baseline.image_table(images), quick)
    ants = table[table["label"] == "ants"]
    train, test = (ants.loc[ants["split"] == name, "path"].iloc[0] for name in ("train", "test"))
    file = write_fixes(tmp_path, (train, "ants", "bees"), (test, "ants", "bees"))
    result = compare_fixes([file], images, quick, out=tmp_path / "run", progress=baseline.Progress())
    assert result.before == tmp_path / "run" / "before" and result.after.folder == tmp_path / "run" / "after"
    assert result.comparison.table["images"].nunique() == 1 and len(result.comparison.sentences) == 1
    before, after = (pd.read_csv(folder / "split.csv") for folder in (result.before, result.after.folder))
    assert len(before) == len(table)
    changed = before["label"] != after["label"]
    assert before["path"].equals(after["path"]) and len(before[changed]) <= 2
    assert set(before["path"][changed]) == {
        path for path in (train, test) if before.set_index("path")["split"][path] != "test"
    }
    again = baseline.load_recipe(result.after.folder / "manifest.json")
    assert again.data.fixes == (str(file),)


def test_the_command_rejects_fixes_before_it_trains(images: Path, tmp_path: Path) -> None:
    run = partial(call, "run", images, "--out", tmp_path / "run")
    file = write_fixes(tmp_path, ("/here/ant/77.jpg", "ant", "bees"))
    ended = run("--fixes", str(file))
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "names 1 image not found here" in ended.stderr and not (tmp_path / "run").exists()
    assert "--before needs --fixes" in run("--before", str(tmp_path)).stderr
    assert "cannot be combined" in run("--fixes", str(file), "--seeds", "2").stderr
