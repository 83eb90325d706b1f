"""The ladder: rungs on one split, each what it says, judged as the numbers of its run folder are."""

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
from baseline import OutputError, RecipeError, Show, make_curve, make_ladder
from baseline.cli import CURVE_NAMES, RUNG_NAMES
from baseline.curve import RUNG_NAMES as CURVES
from baseline.ladder import _below, _sentences, _write
from baseline.probes import logistic, nearest
from baseline.recipe import EMBEDDED_ARCH
from baseline.rungs import RUNGS, Body
from baseline.save import read_manifest, read_predictions

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Show()
SOME = ("majority", "logistic", "groups", "tta")


@pytest.fixture(scope="module")
def still(small: baseline.Recipe) -> baseline.Recipe:
    """A recipe whose numbers repeat, whatever a timing of number formats finds."""
    return small.changed(frozen_precision="float32", stages=(baseline.Stage("head", 2, 1e-2), small.stages[1]))


@pytest.fixture(scope="module")
def ladder(photos: Path, still: baseline.Recipe, tmp_path_factory: pytest.TempPathFactory) -> baseline.Ladder:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASELINE_HOME", str(home))
        leave_out_pages(patch)
        return make_ladder(photos, still, rungs=SOME, out=tmp_path_factory.mktemp("runs") / "ladder", show=QUIET)


def judged(run: Path, column: str) -> pd.Series:
    table = read_predictions(run)
    test = table[table["split"] == "test"]
    return pd.Series((test[column] == test["label"]).to_numpy(), index=test["path"])


def test_each_rung_is_judged_by_what_its_run_folder_holds(ladder: baseline.Ladder) -> None:
    table = ladder.table.set_index("rung")
    assert list(table.index) == list(SOME) and ladder.split == "test"
    for rung, column in zip(SOME, ("predicted", "predicted", "plain_predicted", "predicted"), strict=True):
        run = Path(table.loc[rung, "run"])
        assert run == ladder.folder / ("groups" if rung == "tta" else rung)
        assert table.loc[rung, "accuracy"] == judged(run, column).mean()
        assert table.loc[rung, "low"] <= table.loc[rung, "accuracy"] <= table.loc[rung, "high"]
    paths = {tuple(sorted(judged(Path(run), "predicted").index)) for run in table["run"]}
    assert len(paths) == 1, "rungs are judged on different photos"
    assert table["against"].fillna("").tolist() == ["", "majority", "logistic", "groups"]
    gained = (
        judged(ladder.folder / "logistic", "predicted").mean() - judged(ladder.folder / "majority", "predicted").mean()
    )
    assert table.loc["logistic", "difference"] == pytest.approx(gained)
    assert (table["parameters"] > 0).tolist() == [False, True, True, True]
    assert (table["seconds"].iloc[1:] > 0).all()


def test_the_most_frequent_class_is_that_of_the_training_photos(ladder: baseline.Ladder) -> None:
    table = pd.read_csv(ladder.folder / "split.csv")
    most = table.loc[table["split"] == "train", "label"].value_counts().index[0]
    assert set(read_predictions(ladder.folder / "majority")["predicted"]) == {most}
    share = (table.loc[table["split"] == "test", "label"] == most).mean()
    assert ladder.table["accuracy"][0] == pytest.approx(share)


def test_its_files_say_the_same_and_the_page_needs_no_other(ladder: baseline.Ladder) -> None:
    written = pd.read_csv(ladder.folder / "ladder.csv").fillna({"arch": ""})
    told = ["arch", "rung", "words", "accuracy", "low", "high", "difference", "p", "seconds", "parameters", "run"]
    pd.testing.assert_frame_equal(written[told], ladder.table[told], check_dtype=False)
    both = json.loads((ladder.folder / "ladder.json").read_text())
    assert both["sentences"] == ladder.sentences and len(both["rungs"]) == len(SOME)
    page = (ladder.folder / "ladder.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page) and "default-src 'none'" in page
    for row in ladder.table.itertuples():
        assert row.words in page and f"{100 * row.accuracy:.1f}\N{NO-BREAK SPACE}%" in page
    assert (ladder.folder / "ladder.png").stat().st_size > 5000


def test_rungs_without_a_network_compare_with_those_that_have_one(ladder: baseline.Ladder) -> None:
    found = baseline.comparison([ladder.folder / "logistic", ladder.folder / "groups"])
    assert found.table["shared"].iloc[1] == ladder.table["photos"][0]
    assert "stages" not in found.table["differs"][1] or "trains" in found.table["differs"][1]


def test_sentences_take_the_cheapest_that_is_not_beaten(ladder: baseline.Ladder) -> None:
    rows = ladder.table
    best = rows.loc[rows["accuracy"].idxmax()]
    words = re.match(r"Take (.*): ([\d.]+)%", ladder.sentences[0])
    assert words is not None
    taken = rows[rows["words"] == words[1]].iloc[0]
    assert float(words[2]) == pytest.approx(100 * taken["accuracy"], abs=0.05)
    found = baseline.same_or_not(*(_table(row, ladder) for row in (taken, best)))
    assert not found["beyond_noise"]
    for cheaper in rows[rows["seconds"] < taken["seconds"]].to_dict("records"):
        if not baseline.same_or_not(_table(cheaper, ladder), _table(best, ladder))["beyond_noise"]:
            assert taken["seconds"] - cheaper["seconds"] <= 1 and taken["accuracy"] >= cheaper["accuracy"]


def test_a_moment_more_or_less_decides_nothing(ladder: baseline.Ladder) -> None:
    rows = ladder.table.to_dict("records")
    tables = [_table(row, ladder) for row in rows]
    low, high = sorted((0, 1, 2), key=lambda at: rows[at]["accuracy"])[::2]
    assert rows[low]["accuracy"] < rows[high]["accuracy"]
    same = [table.assign(predicted=tables[high]["predicted"].to_numpy()) for table in tables]  # nothing beyond noise

    def taken(*seconds: float) -> str:
        timed = [rows[at] | {"seconds": each} for at, each in zip((low, high), seconds, strict=True)]
        return _sentences(timed, [same[low], same[high]], [None, 0], "test")[0]

    for short, long in ((1.8, 1.9), (100.0, 109.0)):
        assert all(f"Take {rows[high]['words']}: " in each for each in (taken(short, long), taken(long, short)))
    assert f"Take {rows[low]['words']}: " in taken(1.8, 2.9) and f"Take {rows[high]['words']}: " in taken(2.9, 1.8)
    assert f"Take {rows[low]['words']}: " in taken(100, 111)


def test_augmented_views_are_below_no_other_rung(photos: Path, still: baseline.Recipe, tmp_path: Path) -> None:
    body = Body(photos, pd.DataFrame(), pd.DataFrame(), tmp_path, tmp_path, still, QUIET)
    climbed = [
        (body, rung, tmp_path / run) for rung, run in (("head", "head"), ("tta", "head"), ("scratch", "scratch"))
    ]
    assert [_below(climbed, at) for at in range(3)] == [None, 0, 0]


def test_a_body_named_twice_is_climbed_once(photos: Path, still: baseline.Recipe, tmp_path: Path) -> None:
    found = make_ladder(photos, still, archs=(EMBEDDED_ARCH,) * 2, rungs=("majority", "logistic"), out=tmp_path / "l",
                        show=QUIET)  # fmt: skip
    assert found.table["run"].tolist() == [str(tmp_path / "l" / rung) for rung in ("majority", "logistic")]


def _table(row: Any, ladder: baseline.Ladder) -> pd.DataFrame:
    table = read_predictions(Path(row["run"]))
    return table if row["rung"] == "tta" else table.assign(predicted=table["plain_predicted"])


def test_every_rung_trains_what_it_says(
    photos: Path, still: baseline.Recipe, settled: tuple[Any, pd.DataFrame], tmp_path: Path
) -> None:
    (tmp_path / "split.csv").write_text("")
    body = Body(photos, settled[1], pd.DataFrame(), tmp_path / "split.csv", tmp_path, still, QUIET)
    plans = {rung: body.planned(rung) for rung in RUNGS}
    trains = {rung: [stage.trains for stage in plan.stages] for rung, plan in plans.items()}
    assert trains["head"] == ["head"] and plans["head"].stages[0].epochs >= 10
    assert trains["fastai"] == ["head"] and plans["fastai"].freeze == plans["fastai"].head == "fastai"
    assert plans["fastai"].stages[0].batch_norm == "moving"
    assert trains["groups"] == ["head", 3] and trains["all"] == ["head", "all"]
    low, high = plans["all"].stages[1].lr
    assert low == high / 10 and high == still.stages[1].lr[1]
    assert trains["scratch"] == ["all"] and plans["scratch"].scratch and plans["scratch"].weights == ""
    assert not any(plan.scratch for rung, plan in plans.items() if rung != "scratch")
    assert {plan.split_file for plan in plans.values()} == {str(tmp_path / "split.csv")}
    assert {(plan.arch, plan.image_size, plan.seed) for plan in plans.values()} == {(body.recipe.arch, 48, still.seed)}


def test_an_interrupted_ladder_goes_on(
    photos: Path, still: baseline.Recipe, ladder: baseline.Ladder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []

    class Said(Show):
        def say(self, line: str) -> None:
            lines.append(line)

    out = tmp_path / "a ladder"
    with monkeypatch.context() as patch:
        patch.setattr("baseline.make.make_baseline", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_ladder(photos, still, rungs=SOME, out=out, show=Said())
    assert f"--out '{out}' --resume" in lines[-1]
    kept = (out / "logistic" / "manifest.json").stat().st_mtime_ns
    with pytest.raises(OutputError, match="--resume"):
        make_ladder(photos, still, rungs=SOME, out=out, show=QUIET)
    found = make_ladder(photos, still, rungs=SOME, out=out, resume=True, show=QUIET, workers=1, cache_gb=2.5)
    assert (out / "logistic" / "manifest.json").stat().st_mtime_ns == kept
    same = ["rung", "accuracy", "low", "high", "difference", "p", "parameters"]
    pd.testing.assert_frame_equal(found.table[same], ladder.table[same])
    with pytest.raises(OutputError, match=r"another recipe: .*image_size 48"):
        make_ladder(photos, still, rungs=SOME, out=out, resume=True, show=QUIET, image_size=64)
    with pytest.raises(OutputError, match="other photos"):
        make_ladder(photos, still, rungs=SOME, out=out, resume=True, show=QUIET, seed=5)
    assert read_manifest(out / "groups")["recipe"]["image_size"] == 48


@pytest.mark.parametrize("make", [make_ladder, make_curve])
def test_one_way_to_go_on_is_told(make: Any, photos: Path, still: baseline.Recipe, tmp_path: Path) -> None:
    lines: list[str] = []

    class Said(Show):
        def say(self, line: str) -> None:
            lines.append(line)
            if "epoch 2/" in line:
                raise KeyboardInterrupt

    show, out = Said(), tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        make(photos, still, rungs=("head",), out=out, show=show)
    assert any(line.startswith("interrupted: the best weights of ") for line in lines)
    assert [line for line in lines if "--resume" in line] == [lines[-1]] and f"--out {out} --resume" in lines[-1]
    with pytest.raises(KeyboardInterrupt):
        baseline.make_baseline(photos, still, out=tmp_path / "one", show=show)
    assert lines[-1] == f"to go on: baseline run {tmp_path / 'one'} --resume"


def test_outputs_from_the_cache_count_as_if_computed(photos: Path, still: baseline.Recipe, tmp_path: Path) -> None:
    both = [
        make_ladder(photos, still, rungs=("logistic", "groups"), out=tmp_path / name, show=QUIET) for name in ("a", "b")
    ]
    first, again = (read_manifest(found.folder / "groups")["stages"] for found in both)
    assert [stage["cached_seconds"] for stage in first] == [0, 0]
    assert sum(stage["cached_seconds"] for stage in again) > 0
    spent = [sum(stage["features_seconds"] + stage["cached_seconds"] for stage in each) for each in (first, again)]
    assert 0.2 < spent[1] / spent[0] < 5


def test_wishes_that_cannot_be_are_refused_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'heads'.*head"):
        make_ladder(photos, rungs=("heads",), out=tmp_path / "no", show=QUIET)
    for rungs in (("tta",), ("majority", "tta", "scratch")):
        with pytest.raises(RecipeError, match=r"rung tta is of a trained one.*head, fastai, groups, all"):
            make_ladder(photos, rungs=rungs, out=tmp_path / "no", show=QUIET)
    assert not (tmp_path / "no").exists()
    with pytest.raises(RecipeError, match="tta has no views"):
        make_ladder(photos, tta=(), rungs=("head", "tta"), out=tmp_path / "no views", show=QUIET)
    with pytest.raises(RecipeError, match="budget"):
        make_ladder(photos, budget="5m", out=tmp_path / "no", show=QUIET)
    with pytest.raises(RecipeError, match="resnet999"):
        make_ladder(photos, archs=("resnet999",), out=tmp_path / "no", rungs=("majority",), show=QUIET)


def test_the_command_line_names_the_rungs_that_there_are() -> None:
    assert tuple(RUNGS) == RUNG_NAMES and CURVES == CURVE_NAMES


def test_probes_tell_many_labels_class_by_class() -> None:
    rng = np.random.default_rng(0)
    flags = (rng.random((300, 3)) < [0.5, 0.3, 0.2]).astype(float)
    features = np.hstack([flags, rng.normal(size=(300, 5))]) + rng.normal(0, 0.3, (300, 8))
    parts = (features[:200], flags[:200], features[200:250], flags[200:250], features[250:])
    told, strength = logistic(*parts, many=True)
    assert ((told > 0.5) == flags[250:]).mean() > 0.85 and strength > 1e-4
    near, count = nearest(*parts)
    assert near.shape == told.shape and count > 1 and ((near > 0.5) == flags[250:]).mean() > 0.75


@pytest.fixture(scope="module")
def pages(photos: Path, still: baseline.Recipe, ladder: baseline.Ladder, tmp_path_factory: Any) -> tuple[Path, ...]:
    """Of the ladder, of a curve, and of a ladder whose rungs are all right, of two bodies, with long names."""
    out = tmp_path_factory.mktemp("pages")
    make_curve(photos, still, rungs=("logistic",), sizes=(2, 4, 8), seeds=1, out=out / "curve", show=QUIET)
    sure = ladder.table.assign(accuracy=1.0, low=0.7, high=1.0, seconds=12345.6)
    both = pd.concat(
        [sure, sure.iloc[1:].assign(arch="mobilenetv4_conv_small", words=RUNGS["all"] + ", " + RUNGS["tta"])]
    )
    (out / "sure").mkdir()
    _write(baseline.Ladder(out / "sure", "test", both.assign(difference=None), ladder.sentences))
    return ladder.folder / "ladder.html", out / "curve" / "curve.html", out / "sure" / "ladder.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_whole_charts(pages: tuple[Path, ...], browser: Any, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for page in pages:
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        places = "each => each.getBoundingClientRect().toJSON()"
        chart = tab.locator("figure.chart svg").evaluate(places)
        assert chart["left"] >= 0 and chart["right"] <= width, "the chart has to be pushed aside to be seen"
        words = tab.locator("figure.chart svg text")
        assert words.count() > 8
        for at in range(words.count()):
            text, place = words.nth(at).text_content(), words.nth(at).evaluate(places)
            assert chart["left"] - 1 <= place["left"] and place["right"] <= chart["right"] + 1, text
            assert chart["top"] - 1 <= place["top"] and place["bottom"] <= chart["bottom"] + 1, text
            assert place["height"] >= 10, f"{text} is {place['height']} px high"
            assert not re.fullmatch(r"1[0-9][1-9]%|1[1-9]0%|-.*%", text), "no accuracy is that"
    tab.close()


def test_photos_of_many_labels_climb_and_curve(photos: Path, still: baseline.Recipe, tmp_path: Path) -> None:
    table = baseline.photo_table(photos)[["path", "label"]]
    table["label"] += [";odd" if number % 5 == 0 else ";big;red" if number % 7 == 0 else "" for number in range(48)]
    lines: list[str] = []

    class Said(Show):
        def say(self, line: str) -> None:
            lines.append(line)

    found = make_ladder(table, still, rungs=("majority", "logistic", "head"), out=tmp_path / "ladder", show=Said())
    assert "photos: 48 of 5 classes" in "".join(lines)
    assert read_manifest(found.folder / "head")["data"]["classes"] == ["ants", "bees", "big", "odd", "red"]
    table["split"] = table["path"].map(pd.read_csv(found.folder / "split.csv").set_index("path")["split"])
    curve = make_curve(table, still, rungs=("logistic", "head"), sizes=(1, 3, 6), seeds=1, out=tmp_path / "c",
                       show=QUIET)  # fmt: skip
    heads = curve.table[curve.table["rung"] == "head"]
    assert heads["size"].tolist()[:3] == [1, 3, 6] and heads["photos"].is_monotonic_increasing
    for run in heads["run"]:
        train = pd.read_csv(Path(run) / "split.csv").query("split == 'train'")["label"]
        assert set(train.str.split(";").explode()) == {"ants", "bees", "big", "odd", "red"}


def test_a_name_of_one_label_may_hold_what_parts_several(
    photos: Path, still: baseline.Recipe, ladder: baseline.Ladder, tmp_path: Path
) -> None:
    table = baseline.photo_table(photos)[["path", "label"]]
    for names in ({"ants": "ants", "bees": "bees;wasps"}, {"ants": "a;b", "bees": "b"}):
        renamed = table.assign(label=table["label"].map(names))
        found = make_ladder(renamed, still.changed(labels="one"), rungs=("majority", "neighbours", "logistic"),
                            out=tmp_path / names["ants"], show=QUIET)  # fmt: skip
        same = found.table.set_index("rung")["accuracy"]
        assert same[["majority", "logistic"]].tolist() == ladder.table["accuracy"][:2].tolist()
        told, before = (read_predictions(each.folder / "logistic") for each in (found, ladder))
        assert told["predicted"].tolist() == before["predicted"].map(names).tolist()


def test_a_class_without_training_photos_has_no_probability() -> None:
    flags = np.eye(3)[[0, 0, 0, 1, 1, 1]]
    features = np.eye(3)[[0, 0, 0, 1, 1, 1]]
    told, _ = logistic(features, flags, features, flags, features)
    assert told[:, 2].tolist() == [0] * 6 and np.allclose(told.sum(1), 1)
