"""Label review: labels swapped on purpose come first, and can be fixed on the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import call
from PIL import Image
from sklearn.metrics import roc_auc_score

import baseline
from baseline import clean
from baseline.data.label_fixes import read_fixes
from baseline.errors import DataError, OutputError, RecipeError
from baseline.evaluation.label_errors import find_label_issues
from baseline.experiments.label_review import LabelReview, assign_folds, find_neighbors, predict_out_of_fold
from baseline.report.review_page import write_review_page

SWAPPED = ("00", "05", "10")


@pytest.fixture(scope="module")
def swapped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared images with three of each class in the other folder, a duplicate in the other class, and a blank
    gradient image."""
    folder = tmp_path_factory.mktemp("swapped")
    for name, other in (("ants", "bees"), ("bees", "ants")):
        for path in (images / name).glob("*.jpg"):
            target = folder / (other if path.stem in SWAPPED else name) / f"{name}-{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(folder / "ants" / "ants-03.jpg", folder / "bees" / "copy.jpg")
    Image.linear_gradient("L").resize((200, 200)).save(folder / "ants" / "nothing.png")
    return folder


@pytest.fixture(scope="module")
def review(swapped: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelReview:
    out = tmp_path_factory.mktemp("clean") / "out"
    return clean(swapped, out=out, accept=0.6, progress=baseline.Progress())


def is_swapped(issues: pd.DataFrame) -> pd.Series:
    names = issues["path"].map(lambda path: Path(path).name)
    return issues["given_label"].to_numpy() != names.str.split("-").str[0].where(names.str.contains("-"), "ants")


def test_swapped_labels_come_first(review: LabelReview) -> None:
    issues = review.issues
    wrong = is_swapped(issues) & ~issues["path"].str.endswith("nothing.png")
    assert wrong.sum() == 7  # six and the copy
    assert wrong.head(5).all()
    assert roc_auc_score(wrong, -issues["label_quality"]) > 0.85
    assert set(issues.loc[wrong & issues["is_label_issue"], "predicted_label"]) == {"ants", "bees"}
    assert {"path", "confidence", "is_label_issue", "label_quality", "given_label", "predicted_label"} <= set(issues)
    assert len(pd.read_csv(review.folder / "issues.csv")) == len(issues) == 50
    assert set(issues["split"]) == {"train", "valid", "test"}


def test_conflicting_duplicates_and_outliers_are_reported(review: LabelReview) -> None:
    by_name = review.issues.assign(name=review.issues["path"].map(lambda path: Path(path).name)).set_index("name")
    assert Path(by_name.loc["copy.jpg", "conflict"]).name == "ants-03.jpg"
    assert Path(by_name.loc["ants-03.jpg", "conflict"]).name == "copy.jpg"
    assert (by_name["conflict"] != "").sum() == 2
    assert by_name["outlier_score"].idxmin() == "nothing.png" and by_name.loc["nothing.png", "is_outlier_issue"]


def test_accepted_suggestions_are_valid_fixes(review: LabelReview, swapped: Path) -> None:
    table = baseline.image_table(swapped)
    fixes = read_fixes([review.fixes], table)
    accepted = review.issues[review.issues["is_label_issue"] & (review.issues["confidence"] >= 0.6)]
    assert len(fixes) == len(accepted) >= 4
    assert fixes.set_index("path")["new_label"].to_dict() == accepted.set_index("path")["predicted_label"].to_dict()


def test_images_splits_and_labels_come_from_the_run(done: baseline.Baseline, tmp_path: Path) -> None:
    review = clean(done.folder, out=tmp_path / "out", splits=("train", "valid"), progress=baseline.Progress())
    table = pd.read_csv(done.folder / "split.csv").query("split != 'test'")
    merged = review.issues.merge(table, on="path", suffixes=("", "_run"))
    assert len(merged) == len(review.issues) == len(table)
    assert (merged["split"] == merged["split_run"]).all() and (merged["given_label"] == merged["label"]).all()
    assert review.run == done.folder and review.fixes is None
    with pytest.raises(OutputError, match="holds an earlier label review"):
        clean(done.folder, out=tmp_path / "out", progress=baseline.Progress())
    with pytest.raises(OutputError, match="holds a finished run"):
        clean(done.folder, out=done.folder, progress=baseline.Progress())


def test_a_run_without_its_images_is_rejected(done: baseline.Baseline, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(done.folder / "manifest.json", tmp_path / "run")
    table = pd.read_csv(done.folder / "split.csv")
    table["path"] = "/nowhere" + table["path"]
    table.to_csv(tmp_path / "run" / "split.csv", index=False)
    with pytest.raises(DataError, match=f"{len(table)} of {len(table)} images of .* no longer exist: '/nowhere"):
        clean(tmp_path / "run", out=tmp_path / "out", progress=baseline.Progress())
    assert not (tmp_path / "out").exists()


def test_unsuitable_input_is_rejected(images: Path, tmp_path: Path) -> None:
    def assert_rejected(message: str, source: Any = images, **options: Any) -> None:
        with pytest.raises((DataError, RecipeError), match=message):
            clean(source, out=tmp_path / "out", progress=baseline.Progress(), **options)
        assert not (tmp_path / "out").exists()

    assert_rejected("There is no split 'dev'", splits=("dev",))
    assert_rejected("30 folds, but class 'ants' has only 24 images. Pass at most 24", folds=30)
    table = baseline.image_table(images)
    assert_rejected("these images have several", source=table.assign(label=["ants;bees", *table["label"][1:]]))
    assert_rejected("All images are of one class", source=table[table["label"] == "ants"])
    rows = pd.concat([table[table["label"] == "ants"], table[table["label"] == "bees"].head(1)])
    assert_rejected("'bees' has only one image", source=rows)
    groups = table.assign(group=np.where(table["label"] == "ants", "one", table["path"]), duplicate_id=-1)
    with pytest.raises(DataError, match="Class 'ants' has only one group"):
        assign_folds(groups, None, 0)


def test_folds_respect_groups_and_the_size_of_the_smallest_class() -> None:
    rows = pd.DataFrame({"label": ["a"] * 20 + ["b"] * 3, "duplicate_id": [*range(5), *[-1] * 18]})
    assert np.unique(assign_folds(rows, None, 0)).tolist() == [0, 1, 2]
    rows = pd.DataFrame({"label": ["a", "b"] * 20, "group": [f"g{n // 4}" for n in range(40)], "duplicate_id": -1})
    fold_ids = assign_folds(rows, 5, 0)
    assert (rows.assign(fold=fold_ids).groupby("group")["fold"].nunique() == 1).all()
    neighbors = find_neighbors(np.random.default_rng(0).normal(size=(40, 4)), fold_ids)
    assert (fold_ids[neighbors.rows] != fold_ids[:, None]).all()


def test_given_probabilities_may_be_in_any_order_and_are_checked(review: LabelReview, tmp_path: Path) -> None:
    rows = review.issues[["path", "split", "given_label"]].rename(columns={"given_label": "label"})
    rng = np.random.default_rng(0)
    p = rng.uniform(0.6, 0.9, len(rows))
    p[:3] = 0.02  # probability of their given label
    table = rows[["path"]].assign(p_ants=np.where(rows["label"] == "ants", p, 1 - p))
    table["p_bees"] = 1 - table["p_ants"]
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "oof.csv", index=False)
    by_path = review.issues.sort_values("path")["path"].iloc[0]
    folder = Path(by_path).parents[1]
    review = clean(folder, out=tmp_path / "out", oof=tmp_path / "oof.csv", progress=baseline.Progress())
    assert (
        set(review.issues["path"].head(3)) == set(rows["path"].head(3))
        and review.issues["is_label_issue"].head(3).all()
    )
    table.iloc[1:].to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(DataError, match=r"oof.csv lacks 1 of 50 images"):
        clean(folder, out=tmp_path / "two", oof=tmp_path / "oof.csv", progress=baseline.Progress())
    with pytest.raises(DataError, match="do not sum to 1"):
        find_label_issues(rows, table[["p_ants"]].assign(p_bees=0.5))
    with pytest.raises(DataError, match="No column p_CLASS for 'bees'"):
        find_label_issues(rows, table[["p_ants"]].assign(p_ants=0.5, p_wasps=0.5))


def test_no_label_of_its_own_fold_changes_an_images_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "baseline.experiments.label_review.PENALTIES", (0.01,)
    )  # the choice of these two looks at all labels
    monkeypatch.setattr("baseline.experiments.label_review.VOTE_WEIGHTS", (0.35,))
    rng = np.random.default_rng(1)
    labels, fold_ids = pd.Series(["a", "b", "c"] * 30), np.arange(90) // 3 % 5
    features = rng.normal(size=(90, 8)) + 3 * np.eye(8)[pd.factorize(labels)[0]]
    one = predict_out_of_fold(features, labels, fold_ids)
    own = np.flatnonzero(fold_ids == 2)[:1]
    other = labels.copy()
    other.iloc[own] = "b"
    two = predict_out_of_fold(features, other, fold_ids)
    assert np.abs(one.to_numpy()[own] - two.to_numpy()[own]).max() < 1e-9
    assert np.abs(one - two).to_numpy().max() > 1e-4  # others are judged by it
    assert (one.sum(axis=1) - 1).abs().max() < 1e-9


def test_the_command_reports_suspected_labels_and_the_next_step(swapped: Path, tmp_path: Path) -> None:
    ended = call("clean", swapped, "--out", tmp_path / "out", "--quiet")
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "of 50 labels may be wrong" in ended.stdout and "--fixes fixes.csv" in ended.stdout
    assert (tmp_path / "out" / "clean.html").exists() and not (tmp_path / "out" / "fixes.csv").exists()


UNUSUAL_NAME = """"><script>alert(1)</script>, 'Ärger'"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_are_fixed_in_a_browser_by_mouse_and_keyboard(
    review: LabelReview, tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    issues = review.issues.copy()
    issues["given_label"] = issues["given_label"].replace("ants", UNUSUAL_NAME)
    issues["predicted_label"] = issues["predicted_label"].replace("ants", UNUSUAL_NAME)
    page = write_review_page(tmp_path / "clean.html", issues, UNUSUAL_NAME)
    complaints: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    tab = context.new_page()
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    assert tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert tab.is_disabled("#download")
    cards = tab.locator("#labels .card")
    rows = issues[issues["is_label_issue"] | (issues["conflict"] != "")].to_dict("records")
    assert cards.count() == len(rows) >= 6
    cards.nth(0).locator("text=accept").click()
    cards.nth(1).locator("text=keep").click()
    cards.nth(2).scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelectorAll('#labels select')[2].options.length > 1")
    other = next(name for name in (UNUSUAL_NAME, "bees") if name != rows[2]["given_label"])
    cards.nth(2).locator("select").select_option(other)
    cards.nth(2).focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("d")  # the fourth is dropped, and the fifth is next
    tab.keyboard.press("a")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("a")  # undone: the fifth stays as it is
    assert tab.text_content("#status") == "4 of {} decided: 2 labels changed, 1 image dropped.".format(
        tab.locator(".card").count()
    )
    tab.reload()
    with tab.expect_download() as download:
        tab.click("#download")
    download.value.save_as(tmp_path / "fixes.csv")
    assert download.value.suggested_filename == "fixes.csv"
    fixes = pd.read_csv(tmp_path / "fixes.csv", dtype=str, keep_default_na=False)
    assert fixes.columns.tolist() == ["path", "label", "new_label"]
    wanted = [(row["path"], row["given_label"]) for row in (rows[0], rows[2], rows[3])]
    assert list(fixes[["path", "label"]].itertuples(index=False, name=None)) == wanted
    assert fixes["new_label"].tolist() == [rows[0]["predicted_label"], other, ""]
    table = issues[["path", "split", "given_label"]].rename(columns={"given_label": "label"})
    assert len(read_fixes([tmp_path / "fixes.csv"], table)) == 3
    assert complaints == [] and all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    context.close()


def test_classes_that_are_numbers_are_in_numeric_order() -> None:
    labels = pd.Series(["9", "10", "1"] * 12)
    features = np.random.default_rng(0).normal(size=(36, 3)) + 9 * np.eye(3)[np.arange(36) % 3]
    probabilities = predict_out_of_fold(features, labels, np.arange(36) // 3 % 4)
    assert list(probabilities) == ["p_1", "p_9", "p_10"]
    assert (probabilities.idxmax(axis=1) == "p_" + labels).all()
