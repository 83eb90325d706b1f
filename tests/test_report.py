"""The report of a run: self-contained, true to the manifest, safe with any class name, written without rerunning."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

import baseline
from baseline.cli.printing import result_table
from baseline.errors import DataError, OutputError
from baseline.evaluation.gradcam import grad_cam
from baseline.report import advice, figures
from baseline.report import page as page_module
from baseline.report.page import write_report
from baseline.report.run_files import RunFiles, read_run
from baseline.vision import model_folder
from baseline.vision.model_folder import load_network

UNUSUAL_NAMES = ["<b>bold</b>", "quo\"te's", "🐝 bees", "$5 & $x$", "NA", "{{ 7 * 7 }}"]
LOADS = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
EMPTY = {"meta", "link", "img", "br", "hr", "input", "use", "path"}


class Page(HTMLParser):
    """Parser of a page that collects its tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.words, self.open = text, [], [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(done: baseline.Baseline) -> Page:
    return page_of(done.folder)


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change, without the search for a rate, whose charts take longest."""
    return Path(shutil.copytree(done.folder, tmp_path / "run", ignore=shutil.ignore_patterns("lr_find.csv")))


@pytest.fixture(autouse=True)
def _charts_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws the training charts of the same epochs once, as they take most of the time of a page."""
    monkeypatch.setattr(page_module, "training_charts", training_charts_once)


drawn_charts: dict[str, tuple[list[Markup], bytes]] = {}
draw_training_charts = page_module.training_charts


def training_charts_once(run: RunFiles) -> list[Markup]:
    assert run.epochs is not None
    key, picture = run.epochs.to_json(), run.folder / "training.png"
    if key not in drawn_charts:
        drawn_charts[key] = draw_training_charts(run), picture.read_bytes()
    picture.write_bytes(drawn_charts[key][1])
    return drawn_charts[key][0]


def made_run(source: Path, folder: Path, classes: list[str], images: list[str], each: int, every: int = 5) -> Path:
    """Write a run folder with other classes: the manifest of a real run, synthetic predictions, no model.

    Args:
        images: paths, used in turn.
        each: number of test images per class.
        every: every n-th image is predicted as the next class.
    """
    manifest = json.loads((source / "manifest.json").read_text())
    labels = np.repeat(np.array(classes, dtype=object), each)
    count, rng = len(labels), np.random.default_rng(0)
    predicted, truth = np.arange(count) // each, np.arange(count) // each
    predicted[::every] = (predicted[::every] + 1) % len(classes)
    raw = rng.random((count, len(classes))) ** 8
    raw[np.arange(count), predicted] += rng.random(count) * len(classes)
    raw[np.arange(count), predicted] = raw.max(1) * 1.01
    probabilities = raw / raw.sum(1, keepdims=True)
    rows = pd.DataFrame({"path": [images[n % len(images)] for n in range(count)], "label": labels, "split": "test"})
    for prefix in ("", "plain_"):
        rows[f"{prefix}predicted"] = np.array(classes, dtype=object)[predicted]
        rows[f"{prefix}confidence"] = probabilities.max(1)
        rows[f"{prefix}loss"] = -np.log(probabilities[np.arange(count), truth])
    table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in classes])
    manifest["metrics"] = baseline.evaluate(rows)
    manifest["data"]["classes"] = classes
    folder.mkdir(parents=True)
    pd.concat([rows, table], axis=1).to_csv(folder / "predictions.csv", index=False)
    parts = [rows[["path", "label"]].assign(split=split) for split in ("train", "valid", "test")]
    pd.concat(parts).to_csv(folder / "split.csv", index=False)
    for name in ("history.csv", "lr_find.csv"):
        shutil.copy(source / name, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


# ---- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.real_images
def test_every_run_writes_a_report_and_its_pictures(done: baseline.Baseline) -> None:
    names = {"classes", "confusion", "hits", "lr_find", "sample", "time", "training"}
    names |= {"errors"} if done.metrics["test"]["tta"]["wrong"] else set()
    for name in names:
        assert np.asarray(Image.open(done.folder / f"{name}.png").convert("L")).std() > 5, name
    assert (done.folder / "report.html").stat().st_size < 5e6


@pytest.mark.real_images
def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in LOADS & attributes.keys():
            value = attributes[name] or ""
            plain_link = tag == "a" and value.startswith("https://")
            assert plain_link or value.startswith(("#", "data:")), (tag, name, value[:60])
    style = "".join(re.findall(r"<style>.*?</style>", page.text, re.DOTALL))
    assert "url(" not in style and "@import" not in style
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy
    assert not re.search(r"""url\(\s*['"]?(?!#)""", page.text)


@pytest.mark.real_images
def test_the_page_is_accessible(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert page.all("img") and all(image.get("alt") for image in page.all("img"))
    assert not any(image.get("loading") for image in page.all("img"))  # lazy images are missing in print
    drawings = page.all("svg")
    assert len(drawings) >= 5 and all(each.get("role") == "img" and each.get("aria-label") for each in drawings)
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert not [name for name, times in Counter(ids).items() if times > 1]
    assert {link["href"] for link in page.all("a") if str(link["href"]).startswith("#")} <= {f"#{each}" for each in ids}
    assert "prefers-color-scheme: dark" in page.text and "@media print" in page.text
    assert not page.open


def test_text_has_enough_contrast_in_light_and_dark_mode(page: Page) -> None:
    def light(color: str) -> float:
        shares = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        high, low = sorted((light(one), light(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", page.text, re.S)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        for ground in ("ground", "card"):
            for color in ("ink", "soft", "link", "wrong"):
                assert contrast(scheme[color], scheme[ground]) >= 4.5, (color, ground, scheme)
    for color in (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.GRAY):
        assert all(contrast(color, scheme["ground"]) >= 3 for scheme in schemes), color


@pytest.mark.real_images
def test_the_page_agrees_with_the_manifest(done: baseline.Baseline, page: Page) -> None:
    said = page.said
    for split in ("valid", "test"):
        for kind in ("plain", "tta"):
            result = done.metrics[split][kind]
            assert f"{100 * result['accuracy']:.1f}%" in said
            assert " to ".join(f"{100 * end:.1f}%" for end in result["interval"]) in said
    best = done.metrics["test"]["tta"]
    assert f"{10 - best['wrong']} of 10 test images were classified correctly, {best['wrong']} incorrectly" in said
    for reason in done.manifest["reasons"].values():
        assert reason in said
    for stage in done.history.stages:
        assert stage["why"] in said
    assert done.manifest["bound"] in said and done.manifest["data"]["sha256"] in said
    assert "arch tf_efficientnet_lite0" in said and "34 train, 4 valid, 10 test" in said
    assert f"baseline run {done.folder / 'manifest.json'}" in said
    for version in done.manifest["versions"].values():
        assert version in said


@pytest.mark.real_images
def test_metrics_by_class_equal_scikit_learns(done: baseline.Baseline) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    files = read_run(done.folder)
    rows = page_module.quality_section(files, figures.ThumbnailCache())["per_class"]
    expected = precision_recall_fscore_support(
        files.rows["label"], files.rows["predicted"], labels=files.classes, zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [np.nan if row[name] is None else row[name] for row in rows] == pytest.approx(values, nan_ok=True)


@pytest.mark.real_images
def test_the_confusion_matrix_is_a_table_too(done: baseline.Baseline) -> None:
    from sklearn.metrics import confusion_matrix

    files = read_run(done.folder)
    table = pd.read_csv(done.folder / "confusion.csv", index_col=0)
    assert list(table.index) == list(table.columns) == files.classes
    expected = confusion_matrix(files.rows["label"], files.rows["predicted"], labels=files.classes)
    assert (table.to_numpy() == expected).all()


def test_a_class_without_images_or_predictions_has_dashes(run: Path) -> None:
    table = pd.read_csv(run / "predictions.csv")
    table["p_wasps"] = 0.0
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    assert "wasps 0 – – –" in page_of(run).said


# ---- unusual input --------------------------------------------------------------------------------------------------


def test_unusual_class_names_are_shown_as_plain_text(done: baseline.Baseline, tmp_path: Path) -> None:
    paths = done.predictions["path"].tolist()
    folder = made_run(done.folder, tmp_path / "odd", UNUSUAL_NAMES, paths, each=5)
    write_report(folder)
    page = page_of(folder)
    for name in UNUSUAL_NAMES:
        assert page.said.count(name) >= 4, name
    assert not page.all("b") and "49" not in page.said.split()
    assert any("🐝 bees" in (image["alt"] or "") for image in page.all("img"))


@pytest.mark.real_images
def test_missing_images_are_gray_boxes_with_a_note(run: Path, tmp_path: Path) -> None:
    before = page_of(run)
    for name in ("predictions.csv", "split.csv"):
        table = pd.read_csv(run / name, dtype=str, keep_default_na=False)
        table["path"] = str(tmp_path / "gone") + table["path"]
        table.to_csv(run / name, index=False)
    write_report(run)
    page = page_of(run)
    assert "on this page can no longer be read" in page.said and "can no longer be read" not in before.said
    assert not page.all("img") and page.text.count("not available</div>") >= 10
    assert "Grad-CAM: the images are no longer available" in page.said
    assert [w for w in before.said.split() if "%" in w][:6] == [w for w in page.said.split() if "%" in w][:6]


def test_a_damaged_image_is_a_gray_box_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    table = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"] == "test", "path"] = str(tmp_path / "torn.jpg")
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    assert "1 of the" in page_of(run).said


def test_two_hundred_classes_stay_small_and_readable(done: baseline.Baseline, tmp_path: Path) -> None:
    classes = [f"class {number:03}" for number in range(200)]
    folder = made_run(done.folder, tmp_path / "many", classes, done.predictions["path"].tolist(), each=10)
    write_report(folder)
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 5e6
    confused = page.text[page.text.index("Most frequent confusions") : page.text.index('id="classes"')]
    assert confused.count("<tr>") == 16 and "class 000</th><td>class 001" in confused
    confused = page.text[page.text.index("<h3>Confusion matrix") : page.text.index('id="data"')]
    assert "<text" in confused and confused.count("<text") < 60  # a picture of the matrix, not 200 names
    assert all(name in page.said for name in classes)
    assert Image.open(folder / "confusion.png").width < 1200


def test_ten_thousand_images_take_seconds(done: baseline.Baseline, tmp_path: Path) -> None:
    folder = made_run(done.folder, tmp_path / "large", list("abcdefghij"), done.predictions["path"].tolist(), each=1000)
    began = time.process_time()  # CPU time of this process, whatever else the machine does
    write_report(folder)
    assert time.process_time() - began < 20
    assert "8,000 of 10,000 test images were classified correctly" in page_of(folder).said


def test_several_labels_per_image_have_metrics_of_their_own(run: Path, done: baseline.Baseline) -> None:
    table = done.predictions.copy()
    table["label"] = [
        "ants;bees" if n % 3 == 0 else "" if n % 7 == 0 else label for n, label in enumerate(table["label"])
    ]
    table["predicted"] = table["plain_predicted"] = np.where(table["p_ants"] > 0.6, "ants", "ants;bees")
    table.to_csv(run / "predictions.csv", index=False)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["recipe"]["data"]["task"] = "multilabel"
    manifest["metrics"] = baseline.evaluate(table, "multilabel")
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    said = page_of(run).said
    assert "micro F1 on the test split" in said and "An image may have several labels here" in said
    assert f"{manifest['metrics']['test']['tta']['micro_f1']:.2%}" in said


def test_duplicates_are_shown_in_pairs(run: Path, done: baseline.Baseline) -> None:
    one, other = done.predictions["path"].iloc[:2]
    pair = {"path": one, "other": other, "kind": "near", "distance": 4, "label": "ants", "other_label": "bees"}
    pairs = pd.DataFrame([{**pair, "split": "test", "other_split": "train", "leak": True, "conflict": True}])
    (run / "audit").mkdir(exist_ok=True)
    pairs.to_csv(run / "audit" / "pairs.csv", index=False)
    finding = {"finding": "leak", "images": 1, "words": "1 pair", "effect": "the number is too good", "answer": "drop"}
    (run / "audit" / "findings.json").write_text(json.dumps({"findings": [finding]}))
    write_report(run)
    said = page_of(run).said
    for words in (
        "Leaks: duplicates across splits",
        "Conflicts: duplicates with",
        "Near-duplicates",
        "the number is too good",
    ):
        assert words in said


@pytest.mark.real_images
def test_suspect_labels_are_shown_and_saved(run: Path, done: baseline.Baseline) -> None:
    table = done.predictions.copy()
    for name in ("ants", "bees"):  # a network that doubts every image a little, and no label
        table[f"p_{name}"] = np.where(table["label"] == name, 0.9, 0.1)
    sure = table.index[table["split"] == "test"][0]
    label = table.loc[sure, "label"]
    wrong = {"ants": "bees", "bees": "ants"}[label]
    table.loc[sure, ["label", f"p_{label}", f"p_{wrong}"]] = [wrong, 0.999, 0.001]
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    listed = pd.read_csv(run / "suspected_labels.csv")
    assert listed.loc[0, ["path", "label", "suggested"]].tolist() == [table.loc[sure, "path"], wrong, label]
    said = page_of(run).said
    assert "Labels that may be wrong: 1 of 14 held-out images" in said
    assert f"label: {wrong} suggested: {label} (99.9" in said
    assert (run / "suspects.png").exists()


@pytest.mark.parametrize("errors", [0, 9])
def test_a_weak_model_is_not_trusted_to_find_wrong_labels(run: Path, done: baseline.Baseline, errors: int) -> None:
    table = done.predictions.copy()
    label, other = table["label"], table["label"].map({"ants": "bees", "bees": "ants"})
    is_wrong = (table["split"] == "test") & ((table["split"] == "test").cumsum() <= max(errors, 1))
    table["predicted"] = other.where(is_wrong, label)
    for name in ("ants", "bees"):
        table[f"p_{name}"] = np.where(table["predicted"] == name, 0.9, 0.1)
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    said = page_of(run).said
    assert ("Labels that the model disagrees with" in said) == ("errors of the model, not of the labels" in said)
    assert ("Labels that may be wrong" in said) == (not errors)
    assert ("Labels that the model disagrees with" in said) == bool(errors)


def test_words_of_a_command_stay_whole(page: Page, done: baseline.Baseline) -> None:
    commands = [item.command for item in advice.advise(read_run(done.folder))]
    blocks = re.findall(r'<pre class="command"><code>(.*?)</code></pre>', page.text, re.DOTALL)
    assert blocks[: len(commands)] == [
        " ".join(f"<span>{escape(word)}</span>" for word in command.split(" ")) for command in commands
    ]
    assert ".command span { display: inline-block;" in page.text


def test_a_bug_is_not_reported_as_a_damaged_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "time_section", lambda run: undefined_name)  # type: ignore[name-defined] # noqa: F821
    with pytest.raises(NameError):
        write_report(run)


def test_a_run_without_a_learning_rate_search_says_so(run: Path) -> None:
    (run / "lr_find.csv").write_text("stage,lr,loss\n")
    write_report(run)
    assert "the recipe sets the rates" in page_of(run).said
    (run / "lr_find.csv").unlink()
    write_report(run)
    assert "has no lr_find.csv" in page_of(run).said


# ---- invalid input --------------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_rejected_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(OutputError, match="There is no folder"):
            write_report(folder)
    with pytest.raises(OutputError, match="is not a run folder: it has no manifest"):
        write_report(tmp_path / "empty")
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="is not the manifest of a run"):
        write_report(run)
    (run / "manifest.json").write_text(manifest[:100])
    with pytest.raises(OutputError, match="is damaged"):
        write_report(run)
    newer = json.loads(manifest)
    newer["format"] = 99
    (run / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(OutputError, match="has format 99; this version of baseline reads up to 2"):
        write_report(run)
    (run / "manifest.json").unlink()
    with pytest.raises(OutputError, match="is an unfinished run"):
        write_report(run)


def test_an_invalid_prediction_table_is_rejected_in_one_line(run: Path) -> None:
    good = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)

    def refused(table: pd.DataFrame, words: str) -> None:
        table.to_csv(run / "predictions.csv", index=False)
        with pytest.raises(DataError, match=words):
            write_report(run)

    refused(good.drop(columns=["confidence", "label"]), "lacks the columns label, confidence; needed: path, label")
    refused(good.drop(columns=["p_ants", "p_bees"]), "lacks the columns p_CLASS")
    refused(good.drop(columns=["p_bees"]), "labels without a column p_LABEL: 'bees'")
    refused(good.assign(loss=["nan", *good["loss"][1:]]), "'loss' in row 1 is not a number")
    refused(good.assign(p_ants=[*good["p_ants"][:-1], ""]), rf"'p_ants' in row {len(good)} is not a number")
    refused(good.assign(confidence="high"), "is not a table of a run")
    refused(good[good["split"] != "test"], "no row of the split 'test'")
    (run / "predictions.csv").write_text("")
    with pytest.raises(DataError, match="is not a table of a run"):
        write_report(run)
    (run / "predictions.csv").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        write_report(run)


def test_the_command_prints_the_path_or_one_line(run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    ended = call("report", run, "--quiet")
    assert ended.returncode == 0 and ended.stdout.strip() == str(run / "report.html"), ended.stderr
    assert (run / "report.html").exists() and ended.stderr == ""
    refused = call("report", tmp_path / "nowhere")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("baseline: ")


# ---- the model runs only on the images shown ------------------------------------------------------------------------


@pytest.mark.real_images
def test_the_model_runs_only_on_the_images_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = load_network(run)
    batch_sizes: list[int] = []
    model[0].register_forward_hook(lambda _, images, __: batch_sizes.append(len(images[0])))
    monkeypatch.setattr(model_folder, "load_network", lambda _: (model, facts))
    table = pd.read_csv(run / "predictions.csv", dtype={"path": str, "label": str})
    pd.concat([table] * 50, ignore_index=True).to_csv(run / "predictions.csv", index=False)
    write_report(run)
    total = sum(batch_sizes)
    assert 0 < total <= page_module.ERROR_COUNT + page_module.CORRECT_COUNT < 500
    write_report(run)
    assert sum(batch_sizes) == total, "a rewritten page uses the saved heatmaps"
    (run / "gradcam.npz").write_bytes(b"torn")
    page_module.examples_section(read_run(run), figures.ThumbnailCache())
    assert sum(batch_sizes) == 2 * total
    with (run / "model" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    page_module.examples_section(read_run(run), figures.ThumbnailCache())
    assert sum(batch_sizes) == 3 * total, "heatmaps of another network are not reused"


def test_a_rewritten_page_is_identical_and_needs_no_torch(run: Path, done: baseline.Baseline) -> None:
    shutil.copy(done.folder / "lr_find.csv", run)
    write_report(run)
    before = (run / "report.html").read_text()
    code = (
        "import sys; from baseline.report.page import write_report; write_report(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    assert (run / "report.html").read_text() == before


def test_writing_the_page_preserves_random_states(run: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    write_report(run)
    assert torch.rand(2).equal(expected[0]) and (np.random.rand(2) == expected[1]).all()


# ---- Grad-CAM -------------------------------------------------------------------------------------------------------


def red_and_blue() -> nn.Sequential:
    """Return a network whose class 0 score is redness and class 1 blueness, with locations of 8 x 8 pixels."""
    body = nn.Conv2d(3, 2, 8, stride=8, bias=False)
    with torch.no_grad():
        body.weight.zero_()
        body.weight[0, 0] = body.weight[1, 2] = 1 / 64
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()


def test_grad_cam_locates_the_evidence() -> None:
    image = torch.zeros(2, 3, 32, 48)
    image[:, 0, :8, :8] = 1  # red above left
    image[:, 2, 24:, 40:] = 1  # blue below right
    result = grad_cam(red_and_blue(), image, [0, 1])
    assert result is not None and result.shape == (2, 4, 6) and result.dtype == np.float32
    assert result[0, 0, 0] == 1 and result[0].sum() == 1
    assert result[1, 3, 5] == 1 and result[1].sum() == 1
    nowhere = grad_cam(red_and_blue(), torch.zeros(1, 3, 32, 32), [0])
    assert nowhere is not None and not nowhere.any()


@pytest.mark.real_images
def test_grad_cam_equals_the_formula_of_the_paper(done: baseline.Baseline) -> None:
    model, _ = load_network(done.folder)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    captured: dict[str, torch.Tensor] = {}

    def capture(_: nn.Module, __: Any, maps: torch.Tensor) -> None:
        captured["maps"] = maps
        maps.register_hook(lambda slope: captured.update(slopes=slope))

    handle = model[0].register_forward_hook(capture)
    model(images)[[0, 1], [1, 0]].sum().backward()
    handle.remove()
    places = (captured["slopes"].mean((2, 3), keepdim=True) * captured["maps"]).sum(1).relu().detach()
    expected = places / places.amax((1, 2), keepdim=True).clamp(min=1e-12)  # dark where nothing supports the class
    result = grad_cam(model, images, [1, 0])
    assert result is not None and result == pytest.approx(expected.numpy(), abs=1e-5)
    assert all(parameter.grad is None for parameter in load_network(done.folder)[0].parameters())


def test_the_overlay_is_bright_where_the_evidence_is() -> None:
    places = np.zeros((4, 4), dtype=np.float32)
    places[0, 3] = 1
    overlay = np.asarray(figures.overlay_heatmap(Image.new("RGB", (60, 40), "gray"), places, 120).convert("L")).astype(
        float
    )
    assert overlay.shape == (120, 120)
    assert overlay[:30, 90:].mean() > overlay[60:, :60].mean() + 50


def test_networks_without_a_spatial_map_say_so(
    run: Path, done: baseline.Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(3, 2)).eval()
    (run / "gradcam.npz").unlink()
    facts = {**load_network(run)[1], "arch": "vit_tiny_patch16_224"}
    assert grad_cam(model, torch.rand(1, 3, 8, 8), [0]) is None
    monkeypatch.setattr(model_folder, "load_network", lambda _: (model, facts))
    write_report(run)
    assert "Grad-CAM: not available for vit_tiny_patch16_224" in page_of(run).said
    shutil.rmtree(run / "model")
    write_report(run)
    assert "Grad-CAM: the run folder has no model" in page_of(run).said


def at_size(run: Path, size: int) -> Path:
    """Change the size of the images that the model reads, so that its last feature map is larger."""
    (run / "gradcam.npz").unlink()
    for file in (run / "model" / "model.json", run / "manifest.json"):
        text = file.read_text()
        assert '"image_size": 48' in text
        file.write_text(text.replace('"image_size": 48', f'"image_size": {size}'))
    return run


@pytest.mark.real_images
def test_errors_and_correct_predictions_come_with_an_overlay(run: Path) -> None:
    write_report(at_size(run, 128))
    text = page_of(run).text
    shown = text[text.index('id="images"') : text.index('id="confusions"')]
    assert shown.count("Grad-CAM: the evidence for") == shown.count("confidence: ") > 0


@pytest.mark.real_images
def test_a_heatmap_of_few_regions_is_not_shown(run: Path, page: Page) -> None:
    assert "Grad-CAM: not shown: the last layers keep 2 x 2 regions at 48 pixels" in page.said
    assert "Grad-CAM: the evidence for" not in page.text
    write_report(at_size(run, 96))
    assert "keep 3 x 3 regions at 96 pixels" in page_of(run).said


# ---- what to do next ------------------------------------------------------------------------------------------------


def next_items(run: Path) -> list[advice.Advice]:
    return advice.advise(read_run(run))


@pytest.mark.real_images
def test_every_page_says_what_to_do_next(run: Path, page: Page) -> None:
    items = next_items(run)
    assert 3 <= len(items) <= 5 and items[-1].command == f"baseline predict {run} NEW_IMAGES"
    start = page.said.index("What to do next", page.said.index("incorrectly"))
    for item in items:
        place = page.said.index(item.fact, start)
        assert page.said.index(item.action) > place and "estimate" not in item.fact + item.action
    assert "bottleneck: " in page.said and "faster:" not in page.said  # no advice on a run of seconds


def test_the_commands_of_the_advice_can_be_run(run: Path) -> None:
    folder = run.with_name("leaky run")
    shutil.copytree(run, folder)
    (folder / "audit").mkdir(exist_ok=True)
    finding = {"finding": "leak", "images": 1, "words": "1 duplicate pair across splits", "effect": "", "answer": ""}
    (folder / "audit" / "findings.json").write_text(json.dumps({"findings": [finding]}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"]["preset"] = "quick"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    mistaken = table.index == table.index[table["split"] == "test"][0]
    predicted = table["label"].mask(mistaken, table["label"].map({"ants": "bees", "bees": "ants"}))
    table.assign(predicted=predicted, plain_predicted=predicted).to_csv(folder / "predictions.csv", index=False)
    files = read_run(folder)
    items = [item for rule in (*advice.RULES, *advice.GENERAL_RULES, advice.use_model) if (item := rule(files))]
    commands = [shlex.split(item.command) for item in items]
    assert len({tuple(command) for command in commands}) == len(commands) >= 6
    assert any("--leaks" in command for command in commands) and any("kfold:5" in command for command in commands)
    for _, command, *words in commands:
        if command == "run":
            ended = call("run", *words, "--dry-run")
            assert ended.returncode == 0 and "ants 24, bees 24" in ended.stdout, (words, ended.stderr)
        else:
            assert Path(words[0]).exists() and call(command, "--help").returncode == 0


@pytest.mark.real_images
def test_advice_follows_from_what_was_measured(run: Path, done: baseline.Baseline) -> None:
    commands = " ".join(item.command for item in next_items(run))
    assert "--split kfold:5" in commands
    table = pd.concat([done.predictions] * 200, ignore_index=True)
    right = table.assign(predicted=table["label"], plain_predicted=table["label"])
    right.to_csv(run / "predictions.csv", index=False)
    items = next_items(run)
    said = " ".join(f"{item.fact} {item.action} {item.command}" for item in items)
    assert "kfold" not in said and "incorrectly" not in said and "--preset" not in said and len(items) >= 2
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "own_parts": {"loss_func": ["MyLoss"]}}))
    assert not [item for item in next_items(run) if "manifest.json" in item.command or not item.command]


def test_the_names_of_stages_and_the_title_do_not_overlap() -> None:
    count = 21
    epochs = pd.DataFrame({"stage": [1] + (count - 1) * [2], "trains": ["probe"] + (count - 1) * ["0.55"]})
    epochs = epochs.assign(train_loss=0.1, valid_loss=0.2, valid_accuracy=0.9, lr=1e-3, best=epochs.index == 3)
    for panel in ("loss", "metric", "rate"):
        figure = figures.training_figure(epochs, panel)
        FigureCanvasAgg(figure).draw()
        boxes = [text.get_window_extent() for text in (*figure.axes[0].texts, figure.axes[0].title)]
        assert len(boxes) == 3 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_weak_class_is_named_with_its_training_images(done: baseline.Baseline, tmp_path: Path) -> None:
    classes, paths = list("abcd"), done.predictions["path"].tolist()
    folder = made_run(done.folder, tmp_path / "weak", classes, paths, each=40, every=20)
    table = pd.read_csv(folder / "predictions.csv", dtype={"path": str, "label": str, "predicted": str})
    table.loc[table.index[table["label"] == "c"][:30], "predicted"] = "d"
    table.to_csv(folder / "predictions.csv", index=False)
    split = pd.read_csv(folder / "split.csv", dtype=str)
    few = split[(split["label"] == "c") & (split["split"] == "train")].index[5:]
    split.drop(few).to_csv(folder / "split.csv", index=False)
    item = next(item for item in next_items(folder) if "recall" in item.fact)
    assert item.fact == "Class 'c' has a recall of 25% (40 test images), learned from 5 training images."
    assert item.command.endswith("--class-balance weights")


def test_a_run_ends_with_the_two_next_commands(done: baseline.Baseline) -> None:
    from rich.console import Console

    console = Console(width=1000, record=True, quiet=False, file=io.StringIO())
    console.print(result_table(done))
    *_, results, first, second = console.export_text().strip().splitlines()
    assert results.split() == ["results:", str(done.folder)]
    assert first.startswith("next: baseline ") and second.strip() == f"next: baseline predict {done.folder} NEW_IMAGES"


# ---- small runs -----------------------------------------------------------------------------------------------------


@pytest.mark.real_images
def test_a_small_run_has_no_empty_charts(done: baseline.Baseline, page: Page, tmp_path: Path) -> None:
    assert "10 predictions are too few to compare" in page.said and "Random predictions" not in page.said
    assert not (done.folder / "reliability.png").exists() and not (done.folder / "random.png").exists()
    larger = made_run(done.folder, tmp_path / "larger", ["a", "b"], done.predictions["path"].tolist(), each=120)
    write_report(larger)
    said = page_of(larger).said
    assert "Table of the bins" in said and "Random predictions" in said
    assert (larger / "reliability.png").exists() and (larger / "random.png").exists()


def test_a_single_epoch_is_a_sentence(run: Path) -> None:
    rows = pd.read_csv(run / "history.csv")
    rows.tail(1).assign(best=True).to_csv(run / "history.csv", index=False)
    (run / "training.png").unlink()
    write_report(run)
    page = page_of(run)
    assert f"The run has a single epoch: loss {rows['train_loss'].iloc[-1]:.3f}" in page.said
    assert not (run / "training.png").exists() and "training_loss" not in page.text


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unusual_page(done: baseline.Baseline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with unusual class names."""
    folder, paths = tmp_path_factory.mktemp("unusual") / "odd", done.predictions["path"].tolist()
    return write_report(made_run(done.folder, folder, UNUSUAL_NAMES, paths, each=5, every=4))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_and_requests_nothing(
    unusual_page: Path, browser: Any, width: int, scheme: str
) -> None:
    complaints: list[str] = []
    requested: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(unusual_page.as_uri())
    assert tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == 0
    tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    cut = """all => all.filter(e => e.scrollWidth > e.clientWidth + 1
        && !getComputedStyle(e, "::before").content.includes("scroll sideways")).map(e => e.ariaLabel)"""
    tab.wait_for_function("true")
    assert tab.eval_on_selector_all(".wide", cut) == []  # what has to be scrolled says so
    letters = "all => all.map(e => e.getBoundingClientRect().height).filter(height => height > 0)"
    assert min(tab.eval_on_selector_all("svg text", letters)) >= 8  # letters of charts can be read
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]

    def column(at: int) -> list[str]:
        return tab.eval_on_selector_all(f"#per-class tbody tr > :nth-child({at})", "all => all.map(e => e.textContent)")

    before = column(1)
    tab.click("#per-class th:nth-child(4) button")
    recalls = [float(text.rstrip("%")) for text in column(4)]
    assert recalls == sorted(recalls, reverse=True) and len(set(recalls)) > 1
    assert tab.get_attribute("#per-class th:nth-child(4)", "aria-sort") == "descending"
    tab.click("#per-class th:nth-child(4) button")
    assert [float(text.rstrip("%")) for text in column(4)] == sorted(recalls)
    tab.click("#per-class th:nth-child(1) button")
    assert set(column(1)) == set(before) == set(UNUSUAL_NAMES)
    assert tab.get_attribute("#per-class th:nth-child(4)", "aria-sort") is None
    tab.close()
    assert complaints == [] and [url for url in requested if not url.startswith("data:")] == [unusual_page.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_thirty_test_images_is_short(
    done: baseline.Baseline, tmp_path: Path, browser: Any, scheme: str
) -> None:
    paths = done.predictions["path"].tolist()
    folder = made_run(done.folder, tmp_path / "thirty", list("abcdef"), paths, each=5, every=2)
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    tab.goto(write_report(folder).as_uri())
    assert tab.evaluate("document.querySelectorAll('#images > .cards .card.wrong').length") >= 12  # as many as it shows
    assert tab.evaluate("document.documentElement.scrollHeight") < 4000
    tab.close()
