"""The page of a run: whole in one file, true to the manifest, safe with any class name, and made without a new pass."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from PIL import Image
from torch import nn

import baseline
from baseline import DataError, OutputError, figures, load_network, networks, report, write_report
from baseline.gradcam import grad_cam

ODD = ["<b>bold</b>", "quo\"te's", "🐝 bees", "$5 & $x$", "NA", "{{ 7 * 7 }}"]
LOADS = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
EMPTY = {"meta", "link", "img", "br", "hr", "input", "use", "path"}


class Page(HTMLParser):
    """What of a page the tests look at."""

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
    """A copy of the finished run, to do things to."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def made_run(source: Path, folder: Path, classes: list[str], photos: list[str], each: int, every: int = 5) -> Path:
    """A run folder with other classes: the manifest of a real run, made-up predictions, no model.

    Args:
        photos: paths, taken in turn.
        each: test photos of a class.
        every: one of so many is predicted as the next class.
    """
    manifest = json.loads((source / "manifest.json").read_text())
    labels = np.repeat(np.array(classes, dtype=object), each)
    count, rng = len(labels), np.random.default_rng(0)
    told, truth = np.arange(count) // each, np.arange(count) // each
    told[::every] = (told[::every] + 1) % len(classes)
    raw = rng.random((count, len(classes))) ** 8
    raw[np.arange(count), told] += rng.random(count) * len(classes)
    raw[np.arange(count), told] = raw.max(1) * 1.01
    probabilities = raw / raw.sum(1, keepdims=True)
    rows = pd.DataFrame({"path": [photos[n % len(photos)] for n in range(count)], "label": labels, "split": "test"})
    for prefix in ("", "plain_"):
        rows[f"{prefix}predicted"] = np.array(classes, dtype=object)[told]
        rows[f"{prefix}confidence"] = probabilities.max(1)
        rows[f"{prefix}loss"] = -np.log(probabilities[np.arange(count), truth])
    table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in classes])
    manifest["metrics"] = baseline.measure(rows)
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


def test_every_run_ends_with_a_page_and_its_pictures(done: baseline.Baseline) -> None:
    names = {"classes", "confusion", "lr_find", "random", "reliability", "sample", "time", "training"}
    names |= {"errors"} if done.metrics["test"]["tta"]["wrong"] else set()
    for name in names:
        assert np.asarray(Image.open(done.folder / f"{name}.png").convert("L")).std() > 5, name
    assert (done.folder / "report.html").stat().st_size < 5e6


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


def test_the_page_is_for_everyone(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert page.all("img") and all(image.get("alt") for image in page.all("img"))
    assert not any(image.get("loading") for image in page.all("img"))  # lazy ones are missing on paper
    drawings = page.all("svg")
    assert len(drawings) >= 6 and all(each.get("role") == "img" and each.get("aria-label") for each in drawings)
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert not [name for name, times in Counter(ids).items() if times > 1]
    assert {link["href"] for link in page.all("a") if str(link["href"]).startswith("#")} <= {f"#{each}" for each in ids}
    assert "prefers-color-scheme: dark" in page.text and "@media print" in page.text
    assert not page.open


def test_text_stands_out_from_its_ground_by_night_and_by_day(page: Page) -> None:
    def light(colour: str) -> float:
        shares = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
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
            for colour in ("ink", "soft", "link", "wrong"):
                assert contrast(scheme[colour], scheme[ground]) >= 4.5, (colour, ground, scheme)
    for colour in (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.GREY):
        assert all(contrast(colour, scheme["ground"]) >= 3 for scheme in schemes), colour


def test_the_page_says_what_the_manifest_says(done: baseline.Baseline, page: Page) -> None:
    said = page.said.replace("\N{NO-BREAK SPACE}", " ")
    for split in ("valid", "test"):
        for kind in ("plain", "tta"):
            found = done.metrics[split][kind]
            assert f"{100 * found['accuracy']:.2f} %" in said
            assert " to ".join(f"{100 * end:.2f} %" for end in found["interval"]) in said
    best = done.metrics["test"]["tta"]
    assert f"{10 - best['wrong']} of 10 test photos were right, {best['wrong']} were wrong" in said
    for why in done.manifest["reasons"].values():
        assert why in said
    for stage in done.history.stages:
        assert stage["why"] in said
    assert done.manifest["bound"] in said and done.manifest["data"]["sha256"] in said
    assert "arch tf_efficientnet_lite0" in said and "34 train, 4 valid, 10 test" in said
    assert f"baseline run {done.folder / 'manifest.json'}" in said
    for version in done.manifest["versions"].values():
        assert version in said


def test_class_by_class_is_scikit_learns(done: baseline.Baseline) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    found = report._read(done.folder)
    rows = report._quality(found, report.Photos())["per_class"]
    wanted = precision_recall_fscore_support(
        found.rows["label"], found.rows["predicted"], labels=found.classes, zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1", "photos"), wanted, strict=True):
        assert [np.nan if row[name] is None else row[name] for row in rows] == pytest.approx(values, nan_ok=True)


def test_a_class_without_photos_or_predictions_has_dashes(run: Path) -> None:
    table = pd.read_csv(run / "predictions.csv")
    table["p_wasps"] = 0.0
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    assert "wasps 0 – – –" in page_of(run).said


# ---- what may come --------------------------------------------------------------------------------------------------


def test_odd_class_names_are_text_and_nothing_else(done: baseline.Baseline, tmp_path: Path) -> None:
    paths = done.predictions["path"].tolist()
    folder = made_run(done.folder, tmp_path / "odd", ODD, paths, each=5)
    write_report(folder)
    page = page_of(folder)
    for name in ODD:
        assert page.said.count(name) >= 4, name
    assert not page.all("b") and "49" not in page.said.split()
    assert any("🐝 bees" in (image["alt"] or "") for image in page.all("img"))


def test_photos_that_have_moved_leave_grey_boxes_and_a_sentence(run: Path, tmp_path: Path) -> None:
    before = page_of(run)
    for name in ("predictions.csv", "split.csv"):
        table = pd.read_csv(run / name, dtype=str, keep_default_na=False)
        table["path"] = str(tmp_path / "gone") + table["path"]
        table.to_csv(run / name, index=False)
    write_report(run)
    page = page_of(run)
    assert "could not be read where they were" in page.said and "could not be read" not in before.said
    assert not page.all("img") and page.text.count("not there</div>") >= 10
    assert "Grad-CAM: the photos are not at hand" in page.said
    assert [w for w in before.said.split() if "%" in w][:6] == [w for w in page.said.split() if "%" in w][:6]


def test_a_damaged_photo_is_a_grey_box_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    table = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    table.loc[table["split"] == "test", "path"] = str(tmp_path / "torn.jpg")
    table.to_csv(run / "predictions.csv", index=False)
    write_report(run)
    assert "1 of the" in page_of(run).said


def test_two_hundred_classes_are_small_and_readable(done: baseline.Baseline, tmp_path: Path) -> None:
    classes = [f"class {number:03}" for number in range(200)]
    folder = made_run(done.folder, tmp_path / "many", classes, done.predictions["path"].tolist(), each=50)
    write_report(folder)
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 5e6
    confused = page.text[page.text.index("Most frequent confusions") : page.text.index('id="classes"')]
    assert confused.count("<tr>") == 16 and "class 000</th><td>class 001" in confused
    assert "<text" in confused and confused.count("<text") < 60  # a picture of the matrix, not 200 names
    assert all(name in page.said for name in classes)
    assert Image.open(folder / "confusion.png").width < 1200


def test_ten_thousand_photos_take_seconds(done: baseline.Baseline, tmp_path: Path) -> None:
    folder = made_run(done.folder, tmp_path / "large", list("abcdefghij"), done.predictions["path"].tolist(), each=1000)
    began = time.process_time()  # of this process alone, whatever else the machine does
    write_report(folder)
    assert time.process_time() - began < 20
    assert "8,000 of 10,000 test photos were right" in page_of(folder).said


def test_several_labels_a_photo_have_their_own_numbers(run: Path, done: baseline.Baseline) -> None:
    table = done.predictions.copy()
    table["label"] = [
        "ants;bees" if n % 3 == 0 else "" if n % 7 == 0 else label for n, label in enumerate(table["label"])
    ]
    table["predicted"] = table["plain_predicted"] = np.where(table["p_ants"] > 0.6, "ants", "ants;bees")
    table.to_csv(run / "predictions.csv", index=False)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["recipe"]["labels"] = "many"
    manifest["metrics"] = baseline.measure(table, "many")
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    said = page_of(run).said
    assert "micro F1 on the test split" in said and "A photo may have several labels here" in said
    assert f"{100 * manifest['metrics']['test']['tta']['micro_f1']:.2f}" in said


def test_copies_are_shown_in_pairs(run: Path, done: baseline.Baseline) -> None:
    one, other = done.predictions["path"].iloc[:2]
    pair = {"path": one, "other": other, "kind": "near", "distance": 4, "label": "ants", "other_label": "bees"}
    pairs = pd.DataFrame([{**pair, "split": "test", "other_split": "train", "leak": True, "conflict": True}])
    (run / "audit").mkdir(exist_ok=True)
    pairs.to_csv(run / "audit" / "pairs.csv", index=False)
    finding = {"finding": "leak", "photos": 1, "words": "1 pair", "effect": "the number is too good", "answer": "drop"}
    (run / "audit" / "findings.json").write_text(json.dumps({"findings": [finding]}))
    write_report(run)
    said = page_of(run).said
    for words in ("Leaks: copies in two splits", "Conflicts: copies with", "Near-duplicates", "the number is too good"):
        assert words in said


def test_labels_that_may_be_wrong_are_shown_and_written(run: Path, done: baseline.Baseline) -> None:
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
    assert "Labels that may be wrong" in said and f"label: {wrong} perhaps: {label} (99.9" in said
    assert (run / "suspects.png").exists()


def test_a_run_that_searched_no_rate_says_so(run: Path) -> None:
    (run / "lr_find.csv").write_text("stage,lr,loss\n")
    write_report(run)
    assert "the recipe gives the rates" in page_of(run).said
    (run / "lr_find.csv").unlink()
    write_report(run)
    assert "has no lr_find.csv" in page_of(run).said


# ---- what cannot be used --------------------------------------------------------------------------------------------


def test_what_is_no_finished_run_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(OutputError, match="There is no folder"):
            write_report(folder)
    with pytest.raises(OutputError, match="is no run folder: it has no manifest"):
        write_report(tmp_path / "empty")
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="is no run's manifest"):
        write_report(run)
    (run / "manifest.json").write_text(manifest[:100])
    with pytest.raises(OutputError, match="is damaged"):
        write_report(run)
    newer = json.loads(manifest)
    newer["format"] = 99
    (run / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(OutputError, match="has format 99; this version reads 1"):
        write_report(run)
    (run / "manifest.json").unlink()
    with pytest.raises(OutputError, match="is no run that was finished"):
        write_report(run)


def test_a_prediction_table_that_is_none_is_refused_in_one_line(run: Path) -> None:
    good = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)

    def refused(table: pd.DataFrame, words: str) -> None:
        table.to_csv(run / "predictions.csv", index=False)
        with pytest.raises(DataError, match=words):
            write_report(run)

    refused(good.drop(columns=["confidence", "label"]), "lacks the columns label, confidence; needed: path, label")
    refused(good.drop(columns=["p_ants", "p_bees"]), "lacks the columns p_CLASS")
    refused(good.drop(columns=["p_bees"]), "labels without a column p_LABEL: 'bees'")
    refused(good.assign(loss=["nan", *good["loss"][1:]]), "'loss' of row 1 is no number")
    refused(good.assign(p_ants=[*good["p_ants"][:-1], ""]), rf"'p_ants' of row {len(good)} is no number")
    refused(good.assign(confidence="high"), "is no prediction table")
    refused(good[good["split"] != "test"], "no row of the split 'test'")
    (run / "predictions.csv").write_text("")
    with pytest.raises(DataError, match="is no prediction table"):
        write_report(run)
    (run / "predictions.csv").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        write_report(run)


def test_the_command_prints_the_page_or_one_line(run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    command = [sys.executable, "-m", "baseline", "report", str(run), "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.strip() == str(run / "report.html"), ended.stderr
    assert (run / "report.html").exists() and ended.stderr == ""
    refused = call("report", tmp_path / "nowhere")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("baseline: ")


# ---- the model runs for the photos that are shown, and for no others ------------------------------------------------


def test_the_model_sees_only_the_photos_that_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = load_network(run)
    seen: list[int] = []
    model[0].register_forward_hook(lambda _, photos, __: seen.append(len(photos[0])))
    monkeypatch.setattr(networks, "load_network", lambda _: (model, facts))
    table = pd.read_csv(run / "predictions.csv", dtype={"path": str, "label": str})
    pd.concat([table] * 50, ignore_index=True).to_csv(run / "predictions.csv", index=False)
    write_report(run)
    looked = sum(seen)
    assert 0 < looked <= report.ERRORS + report.HITS < 500
    write_report(run)
    assert sum(seen) == looked, "a page made again shows what was found"
    (run / "gradcam.npz").write_bytes(b"torn")
    write_report(run)
    assert sum(seen) == 2 * looked
    with (run / "model" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    write_report(run)
    assert sum(seen) == 3 * looked, "of another network nothing is taken over"


def test_a_page_made_again_is_the_same_and_needs_no_torch(run: Path) -> None:
    write_report(run)
    before = (run / "report.html").read_text()
    code = "import sys, baseline; baseline.write_report(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    assert (run / "report.html").read_text() == before


def test_the_page_leaves_random_states_as_they_were(run: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    wanted = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    write_report(run)
    assert torch.rand(2).equal(wanted[0]) and (np.random.rand(2) == wanted[1]).all()


# ---- Grad-CAM -------------------------------------------------------------------------------------------------------


def red_and_blue() -> nn.Sequential:
    """A network whose class 0 is how red a photo is, class 1 how blue; 8 pixels a place."""
    body = nn.Conv2d(3, 2, 8, stride=8, bias=False)
    with torch.no_grad():
        body.weight.zero_()
        body.weight[0, 0] = body.weight[1, 2] = 1 / 64
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()


def test_grad_cam_finds_where_the_evidence_is() -> None:
    photo = torch.zeros(2, 3, 32, 48)
    photo[:, 0, :8, :8] = 1  # red above left
    photo[:, 2, 24:, 40:] = 1  # blue below right
    found = grad_cam(red_and_blue(), photo, [0, 1])
    assert found is not None and found.shape == (2, 4, 6) and found.dtype == np.float32
    assert found[0, 0, 0] == 1 and found[0].sum() == 1
    assert found[1, 3, 5] == 1 and found[1].sum() == 1
    nowhere = grad_cam(red_and_blue(), torch.zeros(1, 3, 32, 32), [0])
    assert nowhere is not None and not nowhere.any()


def test_grad_cam_is_the_papers_formula_by_hooks(done: baseline.Baseline) -> None:
    model, _ = load_network(done.folder)
    photos = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    kept: dict[str, torch.Tensor] = {}

    def keep(_: nn.Module, __: Any, maps: torch.Tensor) -> None:
        kept["maps"] = maps
        maps.register_hook(lambda slope: kept.update(slopes=slope))

    handle = model[0].register_forward_hook(keep)
    model(photos)[[0, 1], [1, 0]].sum().backward()
    handle.remove()
    places = (kept["slopes"].mean((2, 3), keepdim=True) * kept["maps"]).sum(1).relu().detach()
    wanted = places / places.amax((1, 2), keepdim=True).clamp(min=1e-12)  # dark where nothing speaks for the class
    found = grad_cam(model, photos, [1, 0])
    assert found is not None and found == pytest.approx(wanted.numpy(), abs=1e-5)
    assert all(parameter.grad is None for parameter in load_network(done.folder)[0].parameters())


def test_an_overlay_is_bright_where_the_evidence_is() -> None:
    places = np.zeros((4, 4), dtype=np.float32)
    places[0, 3] = 1
    overlay = np.asarray(figures.heated(Image.new("RGB", (60, 40), "gray"), places, 120).convert("L")).astype(float)
    assert overlay.shape == (120, 120)
    assert overlay[:30, 90:].mean() > overlay[60:, :60].mean() + 50


def test_networks_without_a_map_say_so(run: Path, done: baseline.Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(3, 2)).eval()
    (run / "gradcam.npz").unlink()
    facts = {**load_network(run)[1], "arch": "vit_tiny_patch16_224"}
    assert grad_cam(model, torch.rand(1, 3, 8, 8), [0]) is None
    monkeypatch.setattr(networks, "load_network", lambda _: (model, facts))
    write_report(run)
    assert "Grad-CAM: not available for vit_tiny_patch16_224" in page_of(run).said
    shutil.rmtree(run / "model")
    write_report(run)
    assert "Grad-CAM: the run folder holds no model" in page_of(run).said


def test_errors_and_hits_come_with_an_overlay(run: Path, page: Page) -> None:
    shown = page.text[page.text.index('id="photos"') :]
    assert shown.count("what spoke for") == re.split("Labels that may|Random pred", shown)[0].count("<figure")


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_and_asks_for_nothing(
    done: baseline.Baseline, tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    folder = made_run(done.folder, tmp_path / "odd", ODD, done.predictions["path"].tolist(), each=5, every=4)
    target = write_report(folder)
    complaints: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(target.as_uri())
    assert tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]

    def column(at: int) -> list[str]:
        return tab.eval_on_selector_all(f"#per-class tbody tr > :nth-child({at})", "all => all.map(e => e.textContent)")

    before = column(1)
    tab.click("#per-class th:nth-child(4) button")
    recalls = [float(text.rstrip(" %\N{NO-BREAK SPACE}")) for text in column(4)]
    assert recalls == sorted(recalls, reverse=True) and len(set(recalls)) > 1
    assert tab.get_attribute("#per-class th:nth-child(4)", "aria-sort") == "descending"
    tab.click("#per-class th:nth-child(4) button")
    assert [float(text.rstrip(" %\N{NO-BREAK SPACE}")) for text in column(4)] == sorted(recalls)
    tab.click("#per-class th:nth-child(1) button")
    assert set(column(1)) == set(before) == set(ODD)
    assert tab.get_attribute("#per-class th:nth-child(4)", "aria-sort") is None
    tab.close()
    assert complaints == [] and [url for url in asked if not url.startswith("data:")] == [target.as_uri()]
