"""Layouts of public datasets are read as their users mean them, or refused in one line that names the way on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import more_layouts  # noqa: F401  # adds to LAYOUTS
import pandas as pd
import pytest
from commands import call
from layouts import LAYOUTS, Layout, save, write_csv, write_lines

import baseline
from baseline import Progress, load_images
from baseline.data.labels import classes_in, explode_labels, is_multilabel, label_matrix, predicted_labels
from baseline.data.sources import registry
from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.data.table import summarize_source
from baseline.errors import DataError, OutputError, RecipeError
from baseline.evaluation.table import correct_rows


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_its_user_means_it(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASELINE_HOME", str(tmp_path_factory.mktemp("cache")))
    layout: Layout = LAYOUTS[name]
    if "excel" in name:
        pytest.importorskip("openpyxl")
    layout.write(tmp_path)
    target = tmp_path / layout.target
    if layout.error:
        with pytest.raises(DataError, match=layout.error) as caught:
            load_images(target, progress=Progress(), preset="standard", **layout.settings)
        message = str(caught.value).replace(str(tmp_path), "")
        assert "\n" not in message and len(message) <= 200, len(message)
        return
    _, table = load_images(target, progress=Progress(), preset="standard", **layout.settings)
    summary = "\n".join(summarize_source(table))
    assert layout.classes is not None
    counts = explode_labels(table["label"]).value_counts().to_dict()
    counts = {label: count for label, count in counts.items() if label in layout.classes or "w_0" not in label}
    assert counts == layout.classes, summary
    splits = table["split"].fillna("none").value_counts().to_dict()
    assert splits == (layout.splits or {"none": len(table)}), summary
    assert is_multilabel(table["label"]) == layout.several, summary
    assert table["group"].nunique() == layout.groups, summary
    for text in layout.says:
        assert text in summary, summary
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in table["path"])


RECIPE = baseline.Recipe().changed(image_size=32, stages=(baseline.Stage("head", 2, 1e-2),), cache_gb=0)


@pytest.fixture(scope="module")
def recipe(body: dict[str, str]) -> baseline.Recipe:
    return RECIPE.changed(**body)


class RecordingProgress(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def copy_images(images: Path, folder: Path, names: list[str]) -> None:
    """Copy images of ants and bees in turn under these names."""
    files = [sorted((images / label).glob("*.jpg")) for label in ("ants", "bees")]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[number % 2][number // 2], folder / name)


def test_labels_separated_by_spaces_end_in_a_submission(
    images: Path, recipe: baseline.Recipe, tmp_path: Path, no_page: None
) -> None:
    names = [*(f"train/{n}.jpg" for n in range(36)), *(f"test/{n}.jpg" for n in range(36, 40))]
    copy_images(images, tmp_path / "data", names)
    tags = ["ant", "bee sky", "ant sky", "bee"]
    write_csv(tmp_path / "data/train.csv", [("image", "tags"), *((n, tags[n % 4]) for n in range(36))])
    sample = tmp_path / "data/sample_submission.csv"
    write_csv(sample, [("image", "tags"), *((n, "ant sky") for n in range(36, 40))])
    done = baseline.make_baseline(tmp_path / "data", recipe, out=tmp_path / "run", progress=Progress())
    assert list(done.learner.dls.vocab) == ["ant", "bee", "sky"]
    assert 0 <= done.metrics["test"]["tta"]["micro_f1"] <= 1
    submission = baseline.submit(tmp_path / "run", sample=sample, out=tmp_path / "submission.csv").path
    lines = Path(submission).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["image", "36", "37", "38", "39"]
    assert all(set(line.split(",")[1].split()) <= {"ant", "bee", "sky"} for line in lines[1:])


def test_several_labels_get_thresholds_that_a_model_and_a_submission_use(
    images: Path, recipe: baseline.Recipe, tmp_path: Path, no_page: None
) -> None:
    splits = ["train"] * 16 + ["valid"] * 24 + ["test"] * 6
    copy_images(images, tmp_path / "data", [f"train/{n}.jpg" for n in range(46)])
    tags = ["ant", "bee sky", "ant sky", "bee"]
    rows = [(f"{n}.jpg", tags[n % 4], split) for n, split in enumerate(splits)]
    write_csv(tmp_path / "data/train.csv", [("image", "tags", "split"), *rows])
    sample = tmp_path / "data/sample_submission.csv"
    write_csv(sample, [("image", "tags"), *((f"{n}.jpg", "ant sky") for n in range(40, 46))])
    lines = RecordingProgress()
    done = baseline.make_baseline(tmp_path / "data", recipe, out=tmp_path / "run", progress=lines)
    thresholds = done.manifest["thresholds"]
    assert list(thresholds) == ["ant", "bee", "sky"] and set(thresholds.values()) != {0.5}
    assert any(line.startswith("thresholds: chosen on valid by F1: ") for line in lines.lines)
    classes = list(thresholds)
    decided = predicted_labels(
        done.predictions[[f"p_{c}" for c in classes]].to_numpy(), classes, [*thresholds.values()]
    )
    assert list(done.predictions["predicted"]) == list(decided)
    model = baseline.load(tmp_path / "run")
    rows_of_test = done.predictions[done.predictions["split"] == "test"]
    assert list(model.predict(list(rows_of_test["path"]))["predicted"]) == list(rows_of_test["predicted"])
    assert model.learner.loss_func.thresh.tolist() == pytest.approx([*thresholds.values()])
    submission = baseline.submit(tmp_path / "run", sample=sample, out=tmp_path / "submission.csv").path
    written = [line.split(",")[1].replace(" ", ";") for line in Path(submission).read_text().splitlines()[1:]]
    assert all(row == label for row, label in zip(written, rows_of_test["predicted"], strict=True) if label)
    config = json.loads((tmp_path / "run/model/model.json").read_text())
    assert config.pop("thresholds") == [*thresholds.values()]
    (tmp_path / "run/model/model.json").write_text(json.dumps(config))
    assert baseline.load(tmp_path / "run").threshold == 0.5  # as model folders of older versions
    (tmp_path / "run/model/model.json").write_text(json.dumps({**config, "thresholds": [0.5, 0.5]}))
    with pytest.raises(OutputError, match=r"thresholds is .*one probability above 0 and below 1 per class"):
        baseline.load(tmp_path / "run")
    one = baseline.make_baseline(tmp_path / "data", recipe, out=tmp_path / "one", thresholds="one", progress=Progress())
    assert "thresholds" not in one.manifest


def test_metadata_of_splits_ends_in_a_model(
    images: Path, recipe: baseline.Recipe, tmp_path: Path, no_page: None
) -> None:
    for split, count in (("train", 24), ("test", 8)):
        names = [f"{n:04}.jpg" for n in range(count)]
        copy_images(images, tmp_path / "data" / split, names)
        rows = [{"file_name": name, "label": ["ant", "bee"][n % 2]} for n, name in enumerate(names)]
        write_lines(tmp_path / "data" / split / "metadata.jsonl", [json.dumps(row) for row in rows])
    done = baseline.make_baseline(tmp_path / "data", recipe, out=tmp_path / "run", progress=Progress())
    assert done.metrics["test"]["images"] == 8 and set(done.learner.dls.vocab) == {"ant", "bee"}
    predicted = baseline.load(tmp_path / "run").predict(tmp_path / "data/test/0001.jpg")
    assert predicted["predicted"].isin(["ant", "bee"]).all()


def test_names_of_files_end_in_a_submission(
    images: Path, recipe: baseline.Recipe, tmp_path: Path, no_page: None
) -> None:
    names = [f"train/{['ant', 'bee'][n % 2]}.{n}.jpg" for n in range(36)]
    copy_images(images, tmp_path / "data", [*names, *(f"test1/{n}.jpg" for n in range(36, 40))])
    sample = tmp_path / "data/sampleSubmission.csv"
    write_csv(sample, [("id", "label"), *((n, 0) for n in range(36, 40))])
    options = {"label_from": "auto", "out": tmp_path / "run", "progress": Progress()}
    done = baseline.make_baseline(tmp_path / "data", recipe, **options)
    assert done.metrics["test"]["images"] > 0
    codes = {"ant": "0", "bee": "1"}
    submission = baseline.submit(tmp_path / "run", sample=sample, out=tmp_path / "s.csv", codes=codes).path
    assert {line.split(",")[1] for line in Path(submission).read_text().splitlines()[1:]} <= {"0", "1"}


def test_numbers_are_classes_in_numeric_order_everywhere(tmp_path: Path) -> None:
    save(tmp_path, *(f"{n % 12}/{n}.jpg" for n in range(48)))
    recipe, table = load_images(tmp_path, RECIPE, progress=Progress())
    numbers = [str(n) for n in range(12)]
    assert classes_in(table) == numbers
    table = baseline.split(table, recipe)
    recipe = baseline.resolve(recipe, table)[0]
    assert list(baseline.dataloaders(table, recipe, path=tmp_path).vocab) == numbers


def test_labels_that_are_numbers_are_joined_in_the_order_of_predictions(tmp_path: Path) -> None:
    save(tmp_path, *(f"{n}.png" for n in range(30)))
    targets = ["16 0", "10 9 2", "2", "25 16"]
    write_csv(tmp_path / "train.csv", [("Id", "Target"), *((n, targets[n % 4]) for n in range(30))])
    _, table = load_images(tmp_path, RECIPE, progress=Progress())
    assert set(table["label"]) == {"0;16", "2;9;10", "2", "16;25"}
    classes = classes_in(table)
    predicted = predicted_labels(label_matrix(table["label"], classes).astype(float), classes, 0.5)
    rows = pd.DataFrame({"label": table["label"], "predicted": predicted})
    assert classes == ["0", "2", "9", "10", "16", "25"] and correct_rows(rows, "predicted").all()
    assert "30 images in 6 classes (several labels per image): 0 8, 2 15," in summarize_source(table)[2]


def test_settings_are_the_same_from_python_toml_and_command_line(tmp_path: Path) -> None:
    LAYOUTS["ages"].write(tmp_path)
    (tmp_path / "mine.toml").write_text("bins = 2\nmissing = 'error'\n")
    table = str(tmp_path / "table.csv")
    by_toml = load_images(table, tmp_path / "mine.toml", progress=Progress())[1]
    by_python = load_images(table, bins=2, missing="error", progress=Progress(), preset="standard")[1]
    assert by_toml["label"].tolist() == by_python["label"].tolist()
    ended = call("run", table, "--bins", "2", "--missing", "error", "--dry-run")
    assert ended.returncode == 0 and "20 to 29.75 20, 29.75 to 39.5 20" in ended.stdout, ended.stderr
    with pytest.raises(RecipeError, match=r"bins is 1, needed: a whole number from 2, 0 for none"):
        load_images(table, bins=1, progress=Progress())


def test_an_unknown_source_is_answered_with_the_nearest(tmp_path: Path) -> None:
    LAYOUTS["loose_pets"].write(tmp_path)
    with pytest.raises(DataError, match=r"There is no source 'folder'\. Did you mean 'folders'\? Known: .*coco"):
        load_images(tmp_path, source="folder", progress=Progress(), preset="standard")
    with pytest.raises(DataError, match=r"does not fit --source coco, which reads, for example, train.json"):
        load_images(tmp_path, source="coco", progress=Progress(), preset="standard")


def test_sources_are_listed_with_an_example() -> None:
    ended = call("sources")
    assert ended.returncode == 0
    for text in ("folders", "images/cat/1.jpg", "labelstudio", "[cat]", "--label-from auto"):
        assert text in ended.stdout


def test_names_of_classes_are_not_offered_as_lists_of_images(tmp_path: Path) -> None:
    save(tmp_path, *(f"train_images/{n}.jpg" for n in range(12)))
    write_csv(tmp_path / "train.csv", [("image_id", "label"), *((f"{n}.jpg", n % 3) for n in range(12))])
    (tmp_path / "label_num_to_disease_map.json").write_text('{"0": "Blight", "1": "Mosaic", "2": "Healthy"}')
    write_lines(tmp_path / "classes.txt", ["0 Blight", "1 Mosaic", "2 Healthy"])
    _, table = load_images(tmp_path, RECIPE, progress=Progress())
    assert set(table["label"]) == {"Blight", "Mosaic", "Healthy"}
    assert "--source" not in "\n".join(summarize_source(table))


def test_equally_good_readings_must_agree_in_images_and_classes(tmp_path: Path) -> None:
    save(tmp_path, *(f"{'ab'[n % 2]}/{n}.png" for n in range(12)))
    rows = [{"image": f"{'ab'[n % 2]}/{n}.png", "label": "xy"[n % 2]} for n in range(12)]
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    _, table = load_images(tmp_path, RECIPE, progress=Progress())
    assert "which would give the same classes" in summarize_source(table)[0]
    (tmp_path / "labels.json").write_text(json.dumps([{**row, "label": "xy"[n % 3 > 0]} for n, row in enumerate(rows)]))
    with pytest.raises(DataError, match=r"but their classes differ\. Pass --source"):
        load_images(tmp_path, RECIPE, progress=Progress())


class Reads(Source):
    """Reads what it is given, or raises it."""

    def __init__(self, name: str, result: Any) -> None:
        self.name, self.example, self.result = name, name, result

    def matches(self, place: Place) -> Evidence:
        if isinstance(self.result, KeyError):
            raise self.result
        return Evidence(0.9, self.name)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        if isinstance(self.result, Exception):
            raise self.result
        return SourceTable(self.result, self.name)


def test_a_reading_that_fails_or_has_other_images_is_not_called_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "1.png")
    first = pd.DataFrame({"path": list("abcd"), "label": list("xyxy"), "split": None, "group": None})

    def read(result: Any) -> SourceTable:
        sources = {"one": Reads("one", first), "two": Reads("two", result)}
        monkeypatch.setattr(registry, "all_sources", lambda: sources)
        return registry.read_place(Place(tmp_path))

    assert read(first).rejected == "not as two, which would give the same classes"
    assert read(DataError("3 images are missing.")).rejected == "not as two, which fails: 3 images are missing."
    with pytest.raises(DataError, match="can be read as one or as two, but their images differ"):
        read(first.assign(path=list("efgh")))
    with pytest.raises(KeyError, match="a bug"):
        read(KeyError("a bug"))


@pytest.mark.parametrize("content", [
    {"images": [3], "annotations": [{}], "categories": ["cat"]},
    {"images": [{}], "annotations": [7], "categories": [{"id": []}]},
    {"classes": ["a"], "labels": {"1": [{"label": {}}]}}, [{"data": {"image": "1.png"}, "annotations": [3]}],
    [{"image": "a/1.png", "label": [[1], {}]}], [{}], {"a": {"b": [1]}},
])  # fmt: skip
def test_a_file_that_only_looks_like_a_known_format_is_passed_over(content: Any, tmp_path: Path) -> None:
    save(tmp_path, *(f"{'ab'[n % 2]}/{n}.png" for n in range(12)))
    (tmp_path / "labels.json").write_text(json.dumps(content))
    _, table = load_images(tmp_path, RECIPE, progress=Progress())
    assert table["label"].value_counts().to_dict() == {"a": 6, "b": 6}
