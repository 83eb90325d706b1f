"""The ladder: variants on one split, each trained as documented and evaluated from its run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import leave_out_pages

import baseline
from baseline import Progress, run_ladder, run_learning_curve
from baseline.cli.options import CURVE_VARIANT_NAMES, VARIANT_NAMES
from baseline.errors import OutputError, RecipeError
from baseline.experiments.ladder import Ladder, reference_index, summarize_ladder, write_ladder_files
from baseline.experiments.learning_curve import CURVE_VARIANTS
from baseline.experiments.probes import logistic_regression, nearest_neighbors
from baseline.experiments.variants import VARIANTS, Architecture, prepare_architectures
from baseline.files import UNFINISHED_DIR
from baseline.runs.folder import read_manifest, read_predictions

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()
LADDER_VARIANTS = ("majority", "logistic", "groups", "tta")


@pytest.fixture(scope="module")
def ladder(images: Path, deterministic: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASELINE_HOME", str(home))
        leave_out_pages(patch)
        return run_ladder(
            images,
            deterministic,
            variants=LADDER_VARIANTS,
            out=tmp_path_factory.mktemp("runs") / "ladder",
            progress=QUIET,
        )


def correct_by_path(run: Path, column: str) -> pd.Series:
    table = read_predictions(run)
    test = table[table["split"] == "test"]
    return pd.Series((test[column] == test["label"]).to_numpy(), index=test["path"])


def test_each_variant_is_evaluated_from_its_run_folder(ladder: Ladder) -> None:
    table = ladder.table.set_index("variant")
    assert list(table.index) == list(LADDER_VARIANTS) and ladder.split == "test"
    for variant, column in zip(
        LADDER_VARIANTS, ("predicted", "predicted", "plain_predicted", "predicted"), strict=True
    ):
        run = Path(table.loc[variant, "run"])
        assert run == ladder.folder / ("groups" if variant == "tta" else variant)
        assert table.loc[variant, "accuracy"] == correct_by_path(run, column).mean()
        assert table.loc[variant, "low"] <= table.loc[variant, "accuracy"] <= table.loc[variant, "high"]
    paths = {tuple(sorted(correct_by_path(Path(run), "predicted").index)) for run in table["run"]}
    assert len(paths) == 1, "variants are evaluated on different images"
    assert table["against"].fillna("").tolist() == ["", "majority", "logistic", "groups"]
    gain = (
        correct_by_path(ladder.folder / "logistic", "predicted").mean()
        - correct_by_path(ladder.folder / "majority", "predicted").mean()
    )
    assert table.loc["logistic", "difference"] == pytest.approx(gain)
    assert (table["parameters"] > 0).tolist() == [False, True, True, True]
    assert (table["seconds"].iloc[1:] > 0).all()


def test_the_majority_class_is_that_of_the_training_images(ladder: Ladder) -> None:
    table = pd.read_csv(ladder.folder / "split.csv")
    majority = table.loc[table["split"] == "train", "label"].value_counts().index[0]
    assert set(read_predictions(ladder.folder / "majority")["predicted"]) == {majority}
    frequency = (table.loc[table["split"] == "test", "label"] == majority).mean()
    assert ladder.table["accuracy"][0] == pytest.approx(frequency)


def test_its_files_agree_and_the_page_is_self_contained(ladder: Ladder) -> None:
    written = pd.read_csv(ladder.folder / "ladder.csv").fillna({"arch": ""})
    columns = ["arch", "variant", "words", "accuracy", "low", "high", "difference", "p", "seconds", "parameters", "run"]
    pd.testing.assert_frame_equal(written[columns], ladder.table[columns], check_dtype=False)
    contents = json.loads((ladder.folder / "ladder.json").read_text())
    assert contents["sentences"] == ladder.sentences and len(contents["variants"]) == len(LADDER_VARIANTS)
    page = (ladder.folder / "ladder.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page) and "default-src 'none'" in page
    for row in ladder.table.itertuples():
        assert row.words in page and f"{100 * row.accuracy:.1f}%" in page
    assert (ladder.folder / "ladder.png").stat().st_size > 5000


def test_variants_without_a_network_can_be_compared_with_trained_ones(ladder: Ladder) -> None:
    result = baseline.compare_runs([ladder.folder / "logistic", ladder.folder / "groups"])
    assert result.table["shared"].iloc[1] == ladder.table["images"][0]
    assert "stages" not in result.table["differs"][1] or "trains" in result.table["differs"][1]


def test_the_cheapest_variant_that_is_not_beaten_is_recommended(ladder: Ladder) -> None:
    rows = ladder.table
    best = rows.loc[rows["accuracy"].idxmax()]
    match = re.match(r"Recommended: (.*), ([\d.]+)% \(", ladder.sentences[0])
    assert match is not None
    taken = rows[rows["words"] == match[1]].iloc[0]
    assert float(match[2]) == pytest.approx(100 * taken["accuracy"], abs=0.05)
    result = baseline.paired_test(*(_table(row, ladder) for row in (taken, best)))
    assert not result["beyond_noise"]
    for cheaper in rows[rows["seconds"] < taken["seconds"]].to_dict("records"):
        if not baseline.paired_test(_table(cheaper, ladder), _table(best, ladder))["beyond_noise"]:
            assert taken["seconds"] - cheaper["seconds"] <= 1 and taken["accuracy"] >= cheaper["accuracy"]


def test_small_differences_in_time_do_not_change_the_recommendation(ladder: Ladder) -> None:
    rows = ladder.table.to_dict("records")
    tables = [_table(row, ladder) for row in rows]
    low, high = 0, 2
    rows[low]["accuracy"], rows[high]["accuracy"] = 0.5, 0.8
    same = [table.assign(predicted=tables[high]["predicted"].to_numpy()) for table in tables]  # nothing beyond noise

    def taken(*seconds: float) -> str:
        timed = [rows[at] | {"seconds": value} for at, value in zip((low, high), seconds, strict=True)]
        return summarize_ladder(timed, [same[low], same[high]], [None, 0], "test")[0]

    for short, long in ((1.8, 1.9), (100.0, 109.0)):
        assert all(
            f"Recommended: {rows[high]['words']}, " in sentence for sentence in (taken(short, long), taken(long, short))
        )
    assert f"Recommended: {rows[low]['words']}, " in taken(
        1.8, 2.9
    ) and f"Recommended: {rows[high]['words']}, " in taken(2.9, 1.8)
    assert f"Recommended: {rows[low]['words']}, " in taken(100, 111)


def test_tta_is_no_reference_of_other_variants(images: Path, deterministic: baseline.Recipe, tmp_path: Path) -> None:
    architecture = Architecture(images, pd.DataFrame(), pd.DataFrame(), tmp_path, tmp_path, deterministic, QUIET)
    runs = [
        (architecture, variant, tmp_path / run)
        for variant, run in (("head", "head"), ("tta", "head"), ("scratch", "scratch"))
    ]
    assert [reference_index(runs, index) for index in range(3)] == [None, 0, 0]


def test_an_architecture_named_twice_is_run_once(images: Path, deterministic: baseline.Recipe, tmp_path: Path) -> None:
    result = run_ladder(
        images,
        deterministic,
        archs=(deterministic.model.arch,) * 2,
        variants=("majority", "logistic"),
        out=tmp_path / "l",
        progress=QUIET,
    )
    assert result.table["run"].tolist() == [str(tmp_path / "l" / variant) for variant in ("majority", "logistic")]


def _table(row: Any, ladder: Ladder) -> pd.DataFrame:
    table = read_predictions(Path(row["run"]))
    return table if row["variant"] == "tta" else table.assign(predicted=table["plain_predicted"])


def test_every_variant_trains_what_is_documented(
    images: Path, deterministic: baseline.Recipe, settled: tuple[Any, pd.DataFrame], tmp_path: Path
) -> None:
    (tmp_path / "split.csv").write_text("")
    architecture = Architecture(
        images, settled[1], pd.DataFrame(), tmp_path / "split.csv", tmp_path, deterministic, QUIET
    )
    plans = {variant: architecture.variant_recipe(variant) for variant in VARIANTS}
    trains = {variant: [stage.trains for stage in plan.stages] for variant, plan in plans.items()}
    assert trains["head"] == ["head"] and plans["head"].stages[0].epochs >= 10
    assert trains["fastai"] == ["head"] and plans["fastai"].training.freeze == plans["fastai"].model.head == "fastai"
    assert plans["fastai"].stages[0].batch_norm == "train"
    assert trains["groups"] == ["head", 3] and trains["all"] == ["head", "all"]
    low, high = plans["all"].stages[1].lr
    assert low == high / 10 and high == deterministic.stages[1].lr[1]
    assert (
        trains["scratch"] == ["all"] and not plans["scratch"].model.pretrained and plans["scratch"].model.weights == ""
    )
    assert all(plan.model.pretrained for variant, plan in plans.items() if variant != "scratch")
    assert {plan.split.file for plan in plans.values()} == {str(tmp_path / "split.csv")}
    assert {(plan.model.arch, plan.model.image_size, plan.seed) for plan in plans.values()} == {
        (architecture.recipe.model.arch, 48, deterministic.seed)
    }


def test_an_interrupted_ladder_is_resumed(
    images: Path,
    deterministic: baseline.Recipe,
    ladder: Ladder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []

    class RecordingProgress(Progress):
        def log(self, line: str) -> None:
            lines.append(line)

    out = tmp_path / "a ladder"
    with monkeypatch.context() as patch:
        patch.setattr("baseline.make.make_baseline", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_ladder(images, deterministic, variants=LADDER_VARIANTS, out=out, progress=RecordingProgress())
    assert f"--out '{out}' --resume" in lines[-1]
    modified = (out / "logistic" / "manifest.json").stat().st_mtime_ns
    with pytest.raises(OutputError, match="--resume"):
        run_ladder(images, deterministic, variants=LADDER_VARIANTS, out=out, progress=QUIET)
    result = run_ladder(
        images, deterministic, variants=LADDER_VARIANTS, out=out, resume=True, progress=QUIET, workers=1, cache_gb=2.5
    )
    assert (out / "logistic" / "manifest.json").stat().st_mtime_ns == modified
    same = ["variant", "accuracy", "low", "high", "difference", "p", "parameters"]
    pd.testing.assert_frame_equal(result.table[same], ladder.table[same])
    with pytest.raises(OutputError, match=r"another recipe: .*image_size 48"):
        run_ladder(images, deterministic, variants=LADDER_VARIANTS, out=out, resume=True, progress=QUIET, image_size=64)
    with pytest.raises(OutputError, match="other images"):
        run_ladder(images, deterministic, variants=LADDER_VARIANTS, out=out, resume=True, progress=QUIET, seed=5)
    assert read_manifest(out / "groups")["recipe"]["model"]["image_size"] == 48


def test_a_variant_that_was_killed_before_its_checkpoints_were_removed_is_no_finished_one(
    images: Path, deterministic: baseline.Recipe, tmp_path: Path
) -> None:
    (architecture,) = prepare_architectures(images, deterministic, (), tmp_path, QUIET, {}, resume=False)
    run = tmp_path / "groups"
    (run / UNFINISHED_DIR).mkdir(parents=True)
    (run / "manifest.json").touch()
    assert not architecture.job("", "groups", run).local


@pytest.mark.parametrize("make", [run_ladder, run_learning_curve])
def test_one_way_to_resume_is_reported(make: Any, images: Path, deterministic: baseline.Recipe, tmp_path: Path) -> None:
    lines: list[str] = []

    class RecordingProgress(Progress):
        def log(self, line: str) -> None:
            lines.append(line)
            if "epoch 2/" in line:
                raise KeyboardInterrupt

    show, out = RecordingProgress(), tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        make(images, deterministic, variants=("head",), out=out, progress=show)
    assert any(line.startswith("interrupted: the weights kept from ") for line in lines)
    assert [line for line in lines if "--resume" in line] == [lines[-1]] and f"--out {out} --resume" in lines[-1]
    with pytest.raises(KeyboardInterrupt):
        baseline.make_baseline(images, deterministic, out=tmp_path / "one", progress=show)
    assert lines[-1] == f"to resume: baseline run {tmp_path / 'one'} --resume"


def test_cached_outputs_count_with_the_time_they_took(
    images: Path, deterministic: baseline.Recipe, tmp_path: Path
) -> None:
    ladders = [
        run_ladder(images, deterministic, variants=("logistic", "groups"), out=tmp_path / name, progress=QUIET)
        for name in ("a", "b")
    ]
    first, again = (read_manifest(ladder.folder / "groups")["stages"] for ladder in ladders)
    assert [stage["cached_seconds"] for stage in first] == [0, 0]
    assert sum(stage["cached_seconds"] for stage in again) > 0
    seconds = [
        sum(stage["features_seconds"] + stage["cached_seconds"] for stage in stages) for stages in (first, again)
    ]
    assert 0.2 < seconds[1] / seconds[0] < 5


def test_impossible_requests_are_rejected_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'heads'.*head"):
        run_ladder(images, variants=("heads",), out=tmp_path / "no", progress=QUIET)
    for variants in (("tta",), ("majority", "tta", "scratch")):
        with pytest.raises(RecipeError, match=r"variant tta needs a trained variant.*head, fastai, groups, all"):
            run_ladder(images, variants=variants, out=tmp_path / "no", progress=QUIET)
    assert not (tmp_path / "no").exists()
    with pytest.raises(RecipeError, match="tta has no views"):
        run_ladder(images, tta=(), variants=("head", "tta"), out=tmp_path / "no views", progress=QUIET)
    with pytest.raises(RecipeError, match="budget"):
        run_ladder(images, budget="5m", out=tmp_path / "no", progress=QUIET)
    with pytest.raises(RecipeError, match="resnet999"):
        run_ladder(images, archs=("resnet999",), out=tmp_path / "no", variants=("majority",), progress=QUIET)


def test_the_command_line_lists_all_variants() -> None:
    assert tuple(VARIANTS) == VARIANT_NAMES and CURVE_VARIANTS == CURVE_VARIANT_NAMES


def test_probes_predict_multilabel_images_class_by_class() -> None:
    rng = np.random.default_rng(0)
    flags = (rng.random((300, 3)) < [0.5, 0.3, 0.2]).astype(float)
    features = np.hstack([flags, rng.normal(size=(300, 5))]) + rng.normal(0, 0.3, (300, 8))
    arrays = (features[:200], flags[:200], features[200:250], flags[200:250], features[250:])
    probabilities, strength = logistic_regression(*arrays, many=True)
    assert ((probabilities > 0.5) == flags[250:]).mean() > 0.85 and strength > 1e-4
    near, count = nearest_neighbors(*arrays)
    assert near.shape == probabilities.shape and count > 1 and ((near > 0.5) == flags[250:]).mean() > 0.75


@pytest.fixture(scope="module")
def pages(images: Path, deterministic: baseline.Recipe, ladder: Ladder, tmp_path_factory: Any) -> tuple[Path, ...]:
    """The pages of a ladder, of a curve, and of a ladder of two architectures with perfect variants and long names."""
    out = tmp_path_factory.mktemp("pages")
    run_learning_curve(
        images, deterministic, variants=("logistic",), sizes=(2, 4, 8), seeds=1, out=out / "curve", progress=QUIET
    )
    sure = ladder.table.assign(accuracy=1.0, low=0.7, high=1.0, seconds=12345.6)
    both = pd.concat(
        [sure, sure.iloc[1:].assign(arch="mobilenetv4_conv_small", words=VARIANTS["all"] + ", " + VARIANTS["logistic"])]
    )
    (out / "sure").mkdir()
    write_ladder_files(Ladder(out / "sure", "test", both.assign(difference=None), ladder.sentences))
    return ladder.folder / "ladder.html", out / "curve" / "curve.html", out / "sure" / "ladder.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_charts_fit_a_browser_window(pages: tuple[Path, ...], browser: Any, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for page in pages:
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        box = "element => element.getBoundingClientRect().toJSON()"
        chart = tab.locator("figure.chart svg").evaluate(box)
        assert chart["left"] >= 0 and chart["right"] <= width, "the chart has to be scrolled sideways"
        texts_and_boxes = f"elements => elements.map(element => [element.textContent, ({box})(element)])"
        labels = tab.locator("figure.chart svg text").evaluate_all(texts_and_boxes)
        assert len(labels) > 8
        for text, rect in labels:
            assert chart["left"] - 1 <= rect["left"] and rect["right"] <= chart["right"] + 1, text
            assert chart["top"] - 1 <= rect["top"] and rect["bottom"] <= chart["bottom"] + 1, text
            assert rect["height"] >= 10, f"{text} is {rect['height']} px high"
            assert not re.fullmatch(r"1[0-9][1-9]%|1[1-9]0%|-.*%", text), "an accuracy outside 0 to 100%"
    tab.close()


def test_multilabel_images_have_ladders_and_curves(
    images: Path, deterministic: baseline.Recipe, tmp_path: Path
) -> None:
    table = baseline.image_table(images)[["path", "label"]]
    table["label"] += [";odd" if number % 5 == 0 else ";big;red" if number % 7 == 0 else "" for number in range(48)]
    lines: list[str] = []

    class RecordingProgress(Progress):
        def log(self, line: str) -> None:
            lines.append(line)

    result = run_ladder(
        table,
        deterministic,
        variants=("majority", "logistic", "head"),
        out=tmp_path / "ladder",
        progress=RecordingProgress(),
    )
    assert "images: 48 in 5 classes" in "".join(lines)
    assert read_manifest(result.folder / "head")["data"]["classes"] == ["ants", "bees", "big", "odd", "red"]
    table["split"] = table["path"].map(pd.read_csv(result.folder / "split.csv").set_index("path")["split"])
    curve = run_learning_curve(
        table,
        deterministic,
        variants=("logistic", "groups"),
        sizes=(1, 3, 6),
        seeds=1,
        out=tmp_path / "c",
        progress=QUIET,
    )
    trained = curve.table[curve.table["variant"] == "groups"]
    assert trained["size"].tolist()[:3] == [1, 3, 6] and trained["images"].is_monotonic_increasing
    for run in trained["run"]:
        train = pd.read_csv(Path(run) / "split.csv").query("split == 'train'")["label"]
        assert set(train.str.split(";").explode()) == {"ants", "bees", "big", "odd", "red"}


def test_a_single_label_may_contain_the_separator_of_several(
    images: Path, deterministic: baseline.Recipe, ladder: Ladder, tmp_path: Path
) -> None:
    table = baseline.image_table(images)[["path", "label"]]
    for names in ({"ants": "ants", "bees": "bees;wasps"}, {"ants": "a;b", "bees": "b"}):
        renamed = table.assign(label=table["label"].map(names))
        result = run_ladder(
            renamed,
            deterministic.changed(task="single"),
            variants=("majority", "neighbors", "logistic"),
            out=tmp_path / names["ants"],
            progress=QUIET,
        )
        same = result.table.set_index("variant")["accuracy"]
        assert same[["majority", "logistic"]].tolist() == ladder.table["accuracy"][:2].tolist()
        renamed_predictions, predictions = (read_predictions(run.folder / "logistic") for run in (result, ladder))
        assert renamed_predictions["predicted"].tolist() == predictions["predicted"].map(names).tolist()


def test_a_class_without_training_images_has_no_probability() -> None:
    flags = np.eye(3)[[0, 0, 0, 1, 1, 1]]
    features = np.eye(3)[[0, 0, 0, 1, 1, 1]]
    probabilities, _ = logistic_regression(features, flags, features, flags, features)
    assert probabilities[:, 2].tolist() == [0] * 6 and np.allclose(probabilities.sum(1), 1)
