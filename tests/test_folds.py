"""Cross-validation runs all folds, covers every image once, resumes, and predicts as an ensemble, as other runs can."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import COMMAND_WITH_FORKS, WITHOUT_PAGE, call
from PIL import Image

import baseline
from baseline import (
    Progress,
    Stage,
    calibrate,
    compare_runs,
    load,
    paired_test,
    run_folds,
    run_seeds,
    submit,
    write_predictions,
)
from baseline.cli import results, use
from baseline.cli import train as train_module
from baseline.cli.printing import _accuracy_text
from baseline.errors import DataError, OutputError, RecipeError
from baseline.evaluation.ensemble import ensemble
from baseline.evaluation.intervals import wilson_interval
from baseline.experiments.repeats import FoldRuns, describe_folds
from baseline.inference.model import Ensemble, load_model
from baseline.inference.output import PredictOptions
from baseline.runs.folder import read_predictions

pytestmark = pytest.mark.usefixtures("no_page")

QUIET = Progress()
SHARES = ["p_ants", "p_bees"]
STAGE = '[[stage]]\ntrains = "head"\nepochs = 1\nlr = 1e-3\n'


class RecordingProgress(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def given(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 images a class to train on, and 9 apart as the test split."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("ants", "bees"):
        for number in range(24):
            part = folder / ("train" if number < 15 else "test") / name
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / name / f"{number:02}.jpg", part)
    return folder


@pytest.fixture(scope="module")
def short(body: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tmp_path_factory.mktemp("recipe") / "short.toml"
    settings = "".join(f'{name} = "{value}"\n' for name, value in {**body, "split": "kfold:3", "audit": "none"}.items())
    recipe.write_text(f"image_size = 48\n{settings}{STAGE}")
    return recipe


@pytest.fixture(scope="module")
def ended(given: Path, short: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return call("run", short, "--data", given, "--out", tmp_path_factory.mktemp("folds") / "out", code=WITHOUT_PAGE)


@pytest.fixture(scope="module")
def folds(ended: Any) -> FoldRuns:
    assert ended.returncode == 0, ended.stderr
    line = next(line for line in ended.stdout.splitlines() if line.startswith("results: "))
    return FoldRuns(**json.loads(Path(line.removeprefix("results: ")).read_text()))


def tables(folds: FoldRuns, split: str) -> list[pd.DataFrame]:
    read = [read_predictions(run["folder"]) for run in folds.runs]
    return [table[table["split"] == split].reset_index(drop=True) for table in read]


def temperatures(folds: FoldRuns) -> list[float]:
    manifests = [json.loads((Path(run["folder"]) / "manifest.json").read_text()) for run in folds.runs]
    return [manifest["calibration"]["temperature"] for manifest in manifests]


# ---- folds ----------------------------------------------------------------------------------------------------------


def tta_mark(folds: FoldRuns) -> str:
    """Return what the numbers of the folds are marked with."""
    views = [run["tta"] for run in folds.runs]
    return " with TTA" if all(views) else " partly with TTA" if any(views) else ""


def test_every_image_is_predicted_once_by_the_fold_that_did_not_train_on_it(
    folds: FoldRuns, given: Path, ended: Any
) -> None:
    rows = pd.read_csv(Path(folds.folder) / "oof.csv")
    assert sorted(rows["path"]) == sorted(map(str, (given / "train").rglob("*.jpg")))
    assert sorted(path.name for path in Path(folds.folder).iterdir()) == [
        "fold-0", "fold-1", "fold-2", "folds.json", "oof.csv", "predictions.csv",
    ]  # fmt: skip
    for fold, valid in enumerate(tables(folds, "valid")):
        mine = rows[rows["fold"] == fold].drop(columns="fold").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, valid, check_dtype=False)
        parts = pd.read_csv(Path(folds.runs[fold]["folder"]) / "split.csv")
        assert set(parts.loc[parts["split"] == "train", "path"]).isdisjoint(mine["path"])
    hits = int((rows["predicted"] == rows["label"]).sum())
    oof = folds.metrics["oof"]["tta"]
    assert (oof["accuracy"], tuple(oof["interval"])) == (hits / 30, wilson_interval(hits, 30))
    assert oof["loss"] == pytest.approx(rows["loss"].mean()) and folds.metrics["oof"]["plain"]["accuracy"] > 0
    accuracies = [run["accuracy"] for run in folds.runs]
    assert (folds.mean, folds.sd) == pytest.approx((statistics.mean(accuracies), statistics.stdev(accuracies)))
    share = oof["accuracy"]
    assert f"out-of-fold accuracy{tta_mark(folds)} of 3 folds: {share:.2%} (95% confidence interval" in ended.stdout
    assert "fold 2, 3 of 3" in ended.stderr and f"mean {folds.mean:.2%}, std {100 * folds.sd:.2f}" in ended.stdout


def test_test_images_are_predicted_by_the_ensemble_as_after_loading(folds: FoldRuns, given: Path, ended: Any) -> None:
    rows = pd.read_csv(Path(folds.folder) / "predictions.csv")
    parts = tables(folds, "test")
    mean = np.mean([calibrate(part, t)[SHARES] for part, t in zip(parts, temperatures(folds), strict=True)], axis=0)
    assert len(rows) == 18 and np.allclose(rows[SHARES], mean, atol=1e-12)
    assert list(rows["predicted"]) == [("ants", "bees")[at] for at in mean.argmax(1)]
    truth = mean[np.arange(18), (rows["label"] == "bees").astype(int)]
    assert np.allclose(rows["confidence"], mean.max(1)) and np.allclose(rows["loss"], -np.log(truth))
    hits = int((rows["predicted"] == rows["label"]).sum())
    assert (
        folds.metrics["test"]["tta"]["interval"] == list(wilson_interval(hits, 18))
        and "plain" not in folds.metrics["test"]
    )
    assert f"test accuracy of the ensemble of folds{tta_mark(folds)}: {hits / 18:.2%}" in ended.stdout
    best = max(parts, key=lambda part: (part["predicted"] == part["label"]).mean())
    assert folds.against_best["difference"] == paired_test(best, rows)["difference"]
    together = load(folds.folder)
    with pytest.raises(OutputError, match="holds 3 models, and one was needed"):
        load_model(folds.folder)
    assert isinstance(together, Ensemble) and len(together.members) == 3 and together.check() < 1e-5
    result = together.predict(rows["path"].tolist())
    assert list(result) == ["path", "predicted", "confidence", *SHARES]
    assert list(result["predicted"]) == list(rows["predicted"])
    assert np.allclose(result[["confidence", *SHARES]], rows[["confidence", *SHARES]], atol=1e-5)
    named = load([run["folder"] for run in folds.runs])
    assert named.identity == together.identity != load([run["folder"] for run in folds.runs[:2]]).identity


def test_resuming_gives_the_same_results(folds: FoldRuns, given: Path, short: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folds.folder, tmp_path / "out"))
    for lost in ("folds.json", "oof.csv", "predictions.csv", "fold-1/manifest.json"):
        (out / lost).unlink()
    with pytest.raises(OutputError, match=r"holds 2 finished folds but no folds\.json"):
        load(out)
    with pytest.raises(OutputError, match=r"fold-0 holds a finished run.*give --resume"):
        run_folds(given, short, out=out, progress=QUIET)
    with pytest.raises(OutputError, match=r"fold-0 was trained with different settings \(seed, image_size\)"):
        run_folds(given, short, out=out, resume=True, image_size=40, seed=1, progress=QUIET)
    with pytest.raises(OutputError, match=r"fold-0 was trained with different settings \(images\)"):
        run_folds(given / "train", short, out=out, resume=True, progress=QUIET)
    stamp = (out / "fold-0" / "manifest.json").stat().st_mtime_ns
    show, manifest = RecordingProgress(), json.loads((out / "fold-2" / "manifest.json").read_text())
    (out / "fold-2" / "manifest.json").write_text(json.dumps(manifest | {"device": "x86_64 CPU, 99 threads"}))
    again = run_folds(given, short, out=out, resume=True, progress=show)
    note = f"the runs were trained on different devices: {manifest['device']}; x86_64 CPU, 99 threads"
    assert sum(line.startswith(note) for line in show.lines) == 1
    assert (out / "fold-0" / "manifest.json").stat().st_mtime_ns == stamp
    assert "fold 0, 1 of 3: already finished" in show.lines and "fold 1, 2 of 3" in show.lines
    for table in ("oof.csv", "predictions.csv"):
        assert (out / table).read_text() == (Path(folds.folder) / table).read_text()
    assert [run["accuracy"] for run in again.runs] == [run["accuracy"] for run in folds.runs]
    parts = pd.read_csv(out / "fold-2" / "predictions.csv")
    other = read_predictions(out / "fold-0")
    pd.concat([parts, other[other["split"] == "valid"].head(1)]).to_csv(out / "fold-2" / "predictions.csv", index=False)
    with pytest.raises(OutputError, match="is in two folds of"):
        run_folds(given, short, out=out, resume=True, progress=QUIET)
    shutil.rmtree(out / "fold-1" / "model")
    with pytest.raises(OutputError, match=r"fold-1, which folds\.json names, holds no model"):
        load(out)
    (out / "folds.json").write_text('{"runs": [{"folder": "../../fold-0/.."}]}')
    with pytest.raises(OutputError, match="names no folds"):
        load(out)


def test_groups_are_in_one_fold_and_the_interval_is_over_groups(images: Path, tmp_path: Path, small: Any) -> None:
    table = baseline.image_table(images)[["path", "label"]]
    table["group"] = [f"{label}{at % 24 // 4}" for at, label in enumerate(table["label"])]
    recipe = small.changed(stages=(Stage("head", 1, 1e-3, augment=False),), audit="none")
    result = run_folds(table, recipe, out=tmp_path / "out", split="group-kfold:2", progress=QUIET)
    rows = pd.read_csv(result.folder / "oof.csv")
    assert rows.groupby("group")["fold"].nunique().max() == 1 and len(rows) == 48
    oof = result.metrics["oof"]
    assert oof["groups"] == 12 and "group_interval" in oof["tta"] and "12 groups" in _accuracy_text(oof, "tta")
    assert result.against_best is None and not (result.folder / "predictions.csv").exists() and len(result.runs) == 2
    assert len(result.model.members) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", 2], "--seeds and k-fold splits cannot be combined. Pass --fold K"),
        (["--processes", 2], "--processes cannot be combined"),
        (
            ["--split", "random", "--fold", 2],
            "fold is 2, but split is 'random', which has no folds. Pass split kfold:K",
        ),
        (["--split", "random", "--resume"], "needs the folder of an unfinished run: --out RUN"),
        (["--split", "kfold:16", "--out", "out"], "16 folds, but class 'ants' has only 15 images. Pass at most 15."),
    ],
)
def test_impossible_folds_are_reported_in_one_line_and_leave_nothing(
    words: list[Any], message: str, given: Path, short: Path
) -> None:
    ended = call("run", short, "--data", given, "-q", *words)
    assert ended.returncode == 2 and message in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert not list(Path.cwd().iterdir())


def test_a_dry_run_describes_the_folds_and_one_fold_is_one_run(given: Path, short: Path, tmp_path: Path) -> None:
    ended = call("run", short, "--data", given, "--dry-run")
    assert "folds: kfold:3, validation images 10, 10, 10; 18 test images are in no fold" in ended.stdout
    assert train_module._means_all_folds(str(short), None) and train_module._means_all_folds("default", "group-kfold:5")
    one = tmp_path / "one.toml"
    one.write_text(short.read_text().replace("image_size", "fold = 2\nimage_size"))
    assert not train_module._means_all_folds(str(one), None) and not train_module._means_all_folds(
        "manifest.json", None
    )
    assert not train_module._means_all_folds(str(short), "random")
    table = baseline.image_table(given)
    with pytest.raises(DataError, match="16 folds, but class 'ants' has only 15 images"):
        describe_folds(table, baseline.Recipe().changed(split="kfold:16"))
    with pytest.raises(OutputError, match="--resume needs the folder of the folds: --out"):
        run_folds(given, short, resume=True, progress=QUIET)
    for wrong, words in (
        ({"fold": 1}, "fold selects a single fold"),
        ({"split": "group"}, "must be kfold:K or group-kfold:K"),
        ({"split": "kfold:1"}, "needed: one of"),
        ({"split_file": "split.csv"}, "Use one of them"),
    ):
        with pytest.raises(RecipeError, match=words):
            run_folds(given, short, out=tmp_path / "none", progress=QUIET, **wrong)
    assert not (tmp_path / "none").exists()


def test_folds_of_a_table_are_run_one_or_all_of_them_once(images: Path, short: Path, tmp_path: Path) -> None:
    paths = [path for name in ("ants", "bees") for path in sorted((images / name).glob("*.jpg"))[:12]]
    numbers = [(1, 1, 2, 2, 3, -1)[at % 6] for at in range(len(paths))]
    table = pd.DataFrame({"image": paths, "label": [path.parent.name for path in paths], "kfold": numbers})
    table.to_csv(tmp_path / "folds.csv", index=False)
    one = short.with_name("one_stage.toml")
    one.write_text(short.read_text().replace('split = "kfold:3"\n', ""))
    options = ["--data", tmp_path / "folds.csv", "--out", tmp_path / "out"]
    told = call("run", one, *options, "--split", "kfold", "--dry-run").stdout
    assert "folds: kfold:kfold, validation images 8, 8, 4; 4 test images are in no fold" in told
    single = call("run", one, *options[:2], "--fold", 2, "--out", tmp_path / "single")
    assert single.returncode == 0, single.stderr
    by_fold = {str(path): fold for path, fold in zip(paths, numbers, strict=True)}
    parts = pd.read_csv(tmp_path / "single/split.csv")
    assert {by_fold[path] for path in parts.loc[parts["split"] == "valid", "path"]} == {2}
    assert {by_fold[path] for path in parts.loc[parts["split"] == "train", "path"]} == {1, 3}
    assert {by_fold[path] for path in parts.loc[parts["split"] == "test", "path"]} == {-1}
    every = call("run", one, *options, "--split", "kfold:3")
    assert every.returncode == 0, every.stderr
    rows = pd.read_csv(tmp_path / "out/oof.csv")
    assert {path: fold for path, fold in by_fold.items() if fold > 0} == dict(
        zip(rows["path"], rows["fold"], strict=True)
    )
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 4
    assert sorted(path.name for path in (tmp_path / "out").glob("fold-*")) == ["fold-1", "fold-2", "fold-3"]
    wrong = call("run", one, *options[:2], "--fold", 0, "--out", tmp_path / "none")
    assert wrong.returncode == 2 and "There is no fold 0 in the column 'kfold': it has 1, 2, 3" in wrong.stderr
    assert not (tmp_path / "none").exists()


def test_a_budget_is_divided_and_the_first_runs_plan_is_used_by_all(
    done: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def made(*_: Any, out: Path, **words: Any) -> baseline.Baseline:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(words)
        shutil.copytree(done.folder, out)
        return done

    monkeypatch.setattr(baseline.make, "make_baseline", made)
    show = RecordingProgress()
    with pytest.raises(KeyboardInterrupt):
        run_seeds(3, "images", out=tmp_path / "my out", budget="3m", progress=show)
    assert calls[0]["budget"] == "60s" and calls[0]["seed"] == 0
    assert calls[1]["budget"] == "" and calls[1]["image_size"] == 48 and calls[1]["stages"] == done.recipe.stages
    assert calls[1]["seed"] == 1 and "presets" not in calls[1]
    words = (
        f"2 of 3 seeds are finished; run the same command with --out '{tmp_path / 'my out'}' --resume "
        "for the remaining ones"
    )
    assert words in show.lines[-1]


def test_a_plan_outlives_the_run_that_made_it(images: Path, small: baseline.Recipe, tmp_path: Path) -> None:
    plan, out = small.changed(stages=(baseline.Stage("head", 2, 1e-3, augment=False),)), tmp_path / "out"
    made = run_seeds(2, images, plan, out=out, budget="20m", progress=QUIET)
    recipes = [json.loads((Path(run["folder"]) / "manifest.json").read_text())["recipe"] for run in made.runs]
    (out / "seeds.json").unlink()
    with pytest.raises(OutputError, match=r"seed-0 was trained with different settings \(budget\)\. Use the same"):
        run_seeds(2, images, plan, out=out, budget="30m", resume=True, progress=QUIET)
    shutil.rmtree(out / "seed-0")
    again = run_seeds(2, images, plan, out=out, budget="20m", resume=True, progress=QUIET)
    assert again.runs[1] == made.runs[1]
    assert json.loads((out / "seed-0" / "manifest.json").read_text())["recipe"] == recipes[0]
    shutil.rmtree(out / "seed-1")
    assert len(run_seeds(2, images, plan, out=out, budget="20m", resume=True, progress=QUIET).runs) == 2
    manifest = json.loads((out / "seed-0" / "manifest.json").read_text())
    manifest["recipe"]["cutout"] = 0.2
    (out / "seed-0" / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(out / "seed-1")
    with pytest.raises(OutputError, match="out was started by another version of baseline"):
        run_seeds(2, images, plan, out=out, budget="20m", resume=True, progress=QUIET)


# ---- ensembles of models --------------------------------------------------------------------------------------------


@pytest.fixture
def models(tiny: Path, tmp_path: Path) -> Any:
    """Return a function that copies the tiny model with changes to its configuration."""

    def made(**changes: Any) -> Path:
        folder = Path(shutil.copytree(tiny, tmp_path / f"model{len(list(tmp_path.iterdir()))}"))
        facts = json.loads((folder / "model.json").read_text()) | changes
        (folder / "model.json").write_text(json.dumps(facts))
        return folder

    return made


def test_models_of_any_size_predict_by_the_mean_and_share_decoded_images(
    models: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [models(), models(temperature=0.5), models(image_size=64, tta=[], temperature=None)]
    paths = sorted(map(str, images.rglob("*.jpg")))
    single = [load(run).predict(paths) for run in runs]
    shares = [f"p_{name}" for name in load(runs[0]).classes]
    mean = np.mean([table[shares] for table in single], axis=0)
    sizes: list[int] = []
    square = baseline.data.image.load_square

    def counted(image: Any, size: int, *options: Any) -> np.ndarray:
        sizes.append(size)
        return square(image, size, *options)

    monkeypatch.setattr(baseline.inference.inputs, "load_square", counted)
    together = load(runs)
    result = together.predict(paths)
    assert sorted(sizes) == [48] * 48 + [64] * 48
    assert np.allclose(result[shares], mean, atol=1e-6) and np.allclose(result["confidence"], mean.max(1), atol=1e-6)
    assert list(result["predicted"]) == [together.classes[at] for at in mean.argmax(1)]
    hurried = np.concatenate([batch.probabilities for batch in together.predict_batches(paths, batch_size=20)])
    assert np.allclose(hurried, mean, atol=1e-5)
    raw = together.predict(paths, calibrated=False)
    assert list(raw["predicted"]) == list(result["predicted"]) and not np.allclose(raw[shares], mean, atol=1e-3)
    big = str(images.parent / "big.jpg")
    Image.open(paths[0]).resize((900, 700)).save(big)
    assert np.allclose(together.predict(Image.open(big))[shares], together.predict(big)[shares], atol=0.02)
    batch = next(together.predict_batches([paths[0], "nowhere.jpg", 3]))
    assert batch.errors[1] == "No such file or directory" and "not int" in batch.errors[2] and not batch.errors[0]


def test_multilabel_ensembles_decide_by_calibrated_thresholds(models: Any, images: Path) -> None:
    runs = [models(task="multilabel", threshold=0.4, temperature=t) for t in (4.0, 1.0)]
    single = [load(run).predict(images, calibrated=False) for run in runs]
    together = load(runs)
    shares = [f"p_{name}" for name in together.classes]
    assert together.multilabel and list(single[0]["predicted"]) == list(single[1]["predicted"])
    result = together.predict(images)
    assert list(result["predicted"]) == list(
        single[0]["predicted"]
    )  # the same network: the temperatures decide nothing
    odds = np.log(single[0][shares] / (1 - single[0][shares]))
    expected = (1 / (1 + np.exp(-odds / 4)) + single[0][shares]) / 2
    assert np.allclose(result[shares], expected, atol=1e-6)


def test_incompatible_models_are_rejected(models: Any, tiny: Path) -> None:
    for changes, words in (
        ({"classes": ["ants", "bees", "flies"]}, "do not have the same classes: they differ in 'flies', 'wasps'"),
        ({"classes": ["bees", "ants", "wasps"]}, "do not have the same classes: they differ in their order"),
        ({"task": "multilabel"}, r"differ in task \(multilabel and single\)"),
        ({}, "is included twice, also as"),
    ):
        with pytest.raises(OutputError, match=words):
            load([tiny, models(**changes)])
    with pytest.raises(OutputError, match="There is no model to predict with"):
        load([])
    assert load([tiny]).members[0].folder == tiny


def test_an_ensembles_job_is_resumed_with_the_same_models_only(
    models: Any, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one, two, three = models(), models(image_size=64), models(temperature=None)
    paths = sorted(map(str, images.rglob("*.jpg")))
    wanted = PredictOptions(every=True, batch_size=16)
    whole = tmp_path / "whole.csv"
    write_predictions(load([one, two]), paths, whole, wanted)
    cut = tmp_path / "cut.csv"
    shutil.copy(whole.with_name("whole.csv.job.json"), cut.with_name("cut.csv.job.json"))
    cut.write_bytes(whole.read_bytes()[:1500])
    for other in (one, [one, three], [two, one]):
        with pytest.raises(OutputError, match="was started with a different model"):
            write_predictions(load(other), paths, cut, wanted, resume=True)
    ended = call("predict", one, images, "--ensemble", two, "--out", cut, "--resume", "--all", "--batch-size", 16,
                 "--processes", 2, code=COMMAND_WITH_FORKS)  # fmt: skip
    assert ended.returncode == 0 and cut.read_bytes() == whole.read_bytes(), ended.stderr
    (tmp_path / "seeds.json").write_text(json.dumps({"runs": [{"folder": f"far/seed-{at}"} for at in (3, 10)]}))
    for at, model in ((3, one), (10, three)):
        shutil.copytree(model, tmp_path / f"seed-{at}" / "model")
    use.check_command(tmp_path)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(tmp_path / "seed-3" / "model"), "golden inputs", str(tmp_path / "seed-10" / "model"), "golden inputs",
    ]  # fmt: skip


def test_a_submission_uses_all_folds(folds: FoldRuns, given: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(Path(folds.folder) / "predictions.csv")
    test = tmp_path / "test"
    test.mkdir()
    for at, path in enumerate(rows["path"]):
        shutil.copy(path, test / f"{at:03}.jpg")
    sample = tmp_path / "sample_submission.csv"
    pd.DataFrame({"id": [f"{at:03}" for at in range(18)], "ants": 0.5, "bees": 0.5}).to_csv(sample, index=False)
    made = submit(folds.folder, sample, test, out=tmp_path / "all.csv", progress=QUIET)
    assert np.allclose(pd.read_csv(made.path)[["ants", "bees"]], rows[SHARES], atol=1e-5)
    first, *others = [run["folder"] for run in folds.runs]
    use.submit_command(Path(first), sample, test, tmp_path / "named.csv", ensemble=[",".join(others)], quiet=True)
    assert (tmp_path / "named.csv").read_text() == made.path.read_text()


# ---- ensembles of runs ----------------------------------------------------------------------------------------------


def test_an_ensemble_of_runs_is_compared_with_them_and_with_the_best(folds: FoldRuns, tmp_path: Path) -> None:
    runs = [run["folder"] for run in folds.runs]
    result = compare_runs(runs, averages=[runs])
    row, rows = result.table.iloc[-1], pd.read_csv(Path(folds.folder) / "predictions.csv")
    assert row["run"] == f"ensemble of {runs[0]} and {runs[1]} and {runs[2]}" and len(result.table) == 4
    assert row["accuracy"] == (rows["predicted"] == rows["label"]).mean() and row["images"] == 18
    assert row["loss"] == pytest.approx(rows["loss"].mean())
    assert row["megabytes"] == pytest.approx(result.table["megabytes"][:3].sum(), abs=0.11)
    accuracies = [run["test"] for run in folds.runs]
    best = runs[accuracies.index(max(accuracies))]
    assert row["difference"] == pytest.approx(row["accuracy"] - max(accuracies))
    assert f"against the best of these, {best}, on 18 images" in result.sentences[2]
    assert result.sentences[-1].startswith("p-values are Holm-corrected for 3 comparisons")
    results.compare_command([Path(run) for run in runs], ensemble=[",".join(runs[:2])], csv=tmp_path / "found.csv")
    two = ensemble(tables(folds, "test")[:2], temperatures(folds)[:2])
    row = pd.read_csv(tmp_path / "found.csv").iloc[-1]
    assert row["loss"] == pytest.approx(two["loss"].mean()) and row["differs"] == "ensemble of 2 runs"
    with pytest.raises(DataError, match="is part of an ensemble but not among the compared runs"):
        compare_runs(runs[:2], averages=[[runs[0], runs[2]]])
    with pytest.raises(DataError, match="two or more different runs"):
        compare_runs(runs, averages=[[runs[0], runs[0]]])


def test_tables_are_averaged_over_their_common_images() -> None:
    rows = {"path": list("abc"), "label": list("xyx"), "split": "test", "group": list("112")}
    one = pd.DataFrame({**rows, "p_x": [0.9, 0.6, 0.8], "p_y": [0.1, 0.4, 0.2]})
    other = pd.DataFrame({**rows, "p_y": [0.3, 0.8, 0.5], "p_x": [0.7, 0.2, 0.5]}).iloc[[1, 0]]
    result = ensemble([one, other], [None, None])
    assert list(result["path"]) == ["a", "b"] and list(result["predicted"]) == ["x", "y"]
    assert np.allclose(result["p_x"], [0.8, 0.4]) and np.allclose(result["loss"], -np.log([0.8, 0.6]))
    assert list(result["group"]) == ["1", "1"]
    with pytest.raises(DataError, match="share no image"):
        ensemble([one, other.assign(path=["q", "r"])], [None, None])
    with pytest.raises(DataError, match="1 image is labeled differently in the two tables, first a: 'x' and 'y'"):
        ensemble([one, other.assign(label="y")], [None, None])
    with pytest.raises(DataError, match="Runs with different classes cannot be averaged: 'x', 'y' and 'y', 'z'"):
        ensemble([one, other.rename(columns={"p_x": "p_z"})], [None, None])
