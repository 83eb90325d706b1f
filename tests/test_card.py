"""The model card: readable by the hub's library, true to the manifest, safe with any class name, free of paths."""

from __future__ import annotations

import getpass
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from commands import call
from markdown_it import MarkdownIt
from test_report import made_run

import baseline
from baseline.errors import OutputError
from baseline.evaluation.explain import explain
from baseline.report import model_card
from baseline.report.model_card import write_card
from baseline.vision.weights import Weights, published_info

UNUSUAL_NAMES = [
    "a|b",
    "- dash",
    "one\ntwo",
    "---",
    "'q' \"w\": #1",
    "🐝 👨\u200d👩\u200d👧",
    "<script>x</script>",
    "`code`",
]
UNUSUAL_NAMES += ["$x$ [l](u)", "\\ end\\", "https://a.b/c", "&amp; <!-- x", "*a* _b_ ~c~"]


def text_of(folder: Path) -> str:
    return (folder / "model" / "README.md").read_text(encoding="utf-8")


def header_of(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def tables_of(text: str) -> list[list[list[str]]]:
    """Return the tables as a Markdown parser reads them: rows of cells, the header first."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1]):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level >= 4 and tables:
            assert all(child.type in ("text", "text_special") for child in token.children or []), token.content
            tables[-1][-1].append("".join(child.content for child in token.children or []))
    return tables


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def changed(run: Path, **values: Any) -> str:
    """Return the card of the run with other values in its manifest."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= values
    (run / "manifest.json").write_text(json.dumps(manifest))
    return write_card(run).read_text(encoding="utf-8")


# ---- agreement with the run -----------------------------------------------------------------------------------------


def test_every_run_writes_a_card_that_the_hub_library_reads(done: baseline.Baseline) -> None:
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard.load(done.folder / "model" / "README.md").data
    test = done.metrics["test"]
    result = [(each.metric_type, each.metric_name, each.metric_value) for each in read.eval_results]
    assert result == [
        ("accuracy", "Accuracy, with TTA", round(test["tta"]["accuracy"], 4)),
        ("accuracy", "Accuracy", round(test["plain"]["accuracy"], 4)),
        ("f1", "Macro F1", round(test["tta"]["macro_f1"], 4)),
    ]
    assert {each.dataset_split for each in read.eval_results} == {"test"}
    assert {each.dataset_name for each in read.eval_results} == {"ants, bees"}
    assert (read.library_name, read.pipeline_tag, read.metrics) == (
        "fastai-baseline",
        "image-classification",
        ["accuracy", "f1"],
    )


def test_the_header_is_yaml_with_license_and_tags(done: baseline.Baseline) -> None:
    header = header_of(text_of(done.folder))
    assert header["license"] == "apache-2.0" and "base_model" not in header and "datasets" not in header
    assert header["tags"] == ["fastai-baseline", "timm", "tf_efficientnet_lite0"]
    assert header["model-index"][0]["name"] == "ants, bees: tf_efficientnet_lite0"


def test_the_card_agrees_with_the_manifest(done: baseline.Baseline) -> None:
    text, best = text_of(done.folder).replace("\\", ""), done.metrics["test"]["tta"]
    low, high = best["interval"]
    assert f"**{best['accuracy']:.1%}**, 95% confidence interval {low:.1%} to {high:.1%}" in text
    for sentence in explain(done.metrics["test"]):
        assert sentence in text
    assert done.manifest["calibration"]["test"]["words"] in text
    assert "34 train, 4 valid, 10 test images; split: random." in text
    assert "It always predicts one of its 2 classes, whatever an image shows." in text
    assert done.manifest["data"]["sha256"] in text and done.manifest["weights"]["sha256"] in text
    for name, version in done.manifest["versions"].items():
        assert f"{name} {version}" in text
    by_class = next(table for table in tables_of(text_of(done.folder)) if table[0][0] == "class")
    assert [row[0] for row in by_class[1:]] == ["ants", "bees"]
    recall = best["classes"]["bees"]["recall"]
    assert by_class[2][:2] == ["bees", "5"] and by_class[2][3] == f"{recall:.1%}"


def test_facts_missing_from_the_manifest_are_omitted(run: Path, done: baseline.Baseline) -> None:
    recipe = {key: done.manifest["recipe"][key] for key in ("evaluation", "model")}
    keys = ("images", "plain", "tta")
    metrics = {split: {key: numbers[key] for key in keys} for split, numbers in done.metrics.items()}
    (run / "manifest.json").write_text(
        json.dumps({"format": done.manifest["format"], "recipe": recipe, "metrics": metrics}, default=str)
    )
    text = write_card(run).read_text()
    for phrase in ("Calibration", "Seed", "sha256", "Versions", "seconds in total", "Audit", "license"):
        assert phrase not in text, phrase
    assert f"{done.metrics['test']['tta']['accuracy']:.1%}" in text


def test_a_run_without_a_test_split_says_that_valid_is_optimistic(run: Path, done: baseline.Baseline) -> None:
    text = changed(run, metrics={"valid": done.metrics["valid"]})
    assert header_of(text)["model-index"][0]["results"][0]["dataset"]["split"] == "valid"
    assert "There was no test split" in text and "There was no test split" not in text_of(done.folder)


def test_several_labels_per_image_have_metrics_of_their_own(run: Path, done: baseline.Baseline) -> None:
    table = done.predictions.copy()
    table["label"] = ["ants;bees" if n % 3 == 0 else label for n, label in enumerate(table["label"])]
    facts = json.loads((run / "model" / "model.json").read_text()) | {"task": "multilabel"}
    (run / "model" / "model.json").write_text(json.dumps(facts))
    numbers = baseline.evaluate(table, "multilabel")
    text = changed(run, metrics=numbers, calibration={})
    result = {each["name"]: each["value"] for each in header_of(text)["model-index"][0]["results"][0]["metrics"]}
    assert result["Micro F1"] == round(numbers["test"]["tta"]["micro_f1"], 4)
    assert "multi-label" in header_of(text)["tags"]
    assert "always predicts one of" not in text and "| ants |" in text and "recall" in text


def test_hub_data_sets_and_weights_have_their_hub_ids(run: Path, done: baseline.Baseline) -> None:
    weights = {"arch": "resnet18d", "path": "/x/y.safetensors", "sha256": "0" * 64}
    hub = header_of(changed(run, images="cifar10", weights={**weights, "origin": "the Hugging Face cache"}))
    assert hub["datasets"] == ["uoft-cs/cifar10"] and hub["base_model"].startswith("timm/resnet18d.")
    assert hub["model-index"][0]["results"][0]["dataset"]["name"] == "CIFAR-10"
    own = changed(run, images="hf:me/mine", weights={**weights, "origin": "the file given"})
    assert header_of(own)["datasets"] == ["me/mine"] and "--data hf:me/mine`" in own
    assert not {"license", "base_model"} & set(header_of(own))
    assert header_of(changed(run, images="hf:/home/me/mine", weights="random")).get("datasets") is None
    assert "Initial weights: random weights." in text_of(run)


def test_torchvision_weights_and_own_files_have_no_published_info() -> None:
    for arch, origin in (("resnet18", "the Hugging Face cache"), ("tf_efficientnet_lite0", "the file given")):
        assert published_info(Weights(arch, Path("x"), "0", origin)) == {}


def test_audit_findings_are_listed_without_file_names(run: Path) -> None:
    rows = [
        ("leak", 3, "2 duplicate pairs across splits, affecting 3 test images (30.0%)", "too optimistic"),
        ("conflict", 2, "1 duplicate pair with different labels, 1 byte-identical: me.jpg = you.jpg", "a limit"),
        ("unreadable", 1, "1 unreadable image: secret.jpg (empty)", "left out"),
    ]
    names = ("finding", "images", "words", "effect")
    (run / "audit").mkdir(exist_ok=True)
    result = {"findings": [{**dict(zip(names, row, strict=True)), "answer": ""} for row in rows]}
    (run / "audit" / "findings.json").write_text(json.dumps(result))
    text = write_card(run).read_text()
    assert "2 duplicate pairs across splits, affecting 3 test images (30.0%) (too optimistic)." in text
    assert "me.jpg" not in text and "secret" not in text and "1 unreadable image |" in text


# ---- publication ----------------------------------------------------------------------------------------------------


def test_the_card_contains_no_paths_of_this_machine(run: Path, done: baseline.Baseline) -> None:
    recipe = done.manifest["recipe"] | {"image_dir": "/home/joe/x", "weights": "/home/joe/w.pth", "data": "/home/joe/d"}
    weights = done.manifest["weights"] | {"path": "/home/joe/w.pth", "origin": "/home/joe/cache"}
    text = changed(run, recipe=json.loads(json.dumps(recipe, default=str)), weights=weights, images="/home/joe/images")
    for place in ("joe", str(done.folder), str(done.folder.parent), str(Path.home()) + "/", "/tmp", "/home"):
        assert place not in text, place
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
    assert r"without the fields that name local files: image\_dir, weights" in text


@pytest.mark.parametrize(
    "classes", [UNUSUAL_NAMES, UNUSUAL_NAMES[:2], ["one\ntwo", "---"]], ids=["many", "two", "rules"]
)
def test_unusual_class_names_are_shown_as_plain_text(
    done: baseline.Baseline, tmp_path: Path, classes: list[str]
) -> None:
    folder = made_run(done.folder, tmp_path / "odd", classes, ["x.jpg"], each=5)
    (folder / "model").mkdir()
    facts = json.loads((done.folder / "model" / "model.json").read_text()) | {"classes": classes}
    (folder / "model" / "model.json").write_text(json.dumps(facts))
    rows = pd.read_csv(folder / "predictions.csv", keep_default_na=False, lineterminator="\n")
    text = changed(folder, metrics=baseline.evaluate(rows.assign(split="test")), calibration={})
    shown = [" ".join(name.split()) for name in classes]
    by_class = next(table for table in tables_of(text) if table[0][0] == "class")
    assert [row[0] for row in by_class[1:]] == shown
    assert all(len(row) == len(table[0]) for table in tables_of(text) for row in table)
    name = header_of(text)["model-index"][0]["results"][0]["dataset"]["name"]
    assert name == (", ".join(shown) if len(classes) <= 5 else f"{len(classes)} classes of images")
    html = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    assert "<script" not in html and "href" not in html and html.count("<h1>") == 1


def test_a_thousand_classes_are_counted(done: baseline.Baseline, run: Path) -> None:
    facts = json.loads((run / "model" / "model.json").read_text()) | {"classes": [f"c{n}" for n in range(1000)]}
    (run / "model" / "model.json").write_text(json.dumps(facts))
    text = write_card(run).read_text()
    assert "1,000 classes; `model.json` lists them" in text and len(text) < 12_000


# ---- use ------------------------------------------------------------------------------------------------------------


def test_the_loading_snippet_works(done: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", text_of(done.folder), re.DOTALL)
    assert code is not None
    Path(shutil.copytree(done.folder / "model", tmp_path / "model"))
    expected = done.predictions.iloc[0]
    shutil.copy(expected["path"], tmp_path / "model" / "image.jpg")
    script = code[1] + "\nprint(table.to_json(orient='records'))"
    monkeypatch.chdir(tmp_path / "model")
    ended = call(code=script)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)[0]
    confidence = baseline.calibrate(done.predictions, done.manifest["calibration"]["temperature"])["confidence"].iloc[0]
    assert result["predicted"] == expected["predicted"] and result["confidence"] == pytest.approx(confidence, abs=1e-5)


def test_the_recipe_in_the_card_is_that_of_the_run(done: baseline.Baseline, tmp_path: Path) -> None:
    block = re.search(r"```json\n(.*?)```", text_of(done.folder), re.DOTALL)
    assert block is not None
    (tmp_path / "recipe.json").write_text(block[1])
    reloaded = baseline.load_recipe(tmp_path / "recipe.json").as_dict()
    assert {key: reloaded[key] for key in reloaded if key not in model_card.OMITTED_FIELDS} == {
        key: value for key, value in done.recipe.as_dict().items() if key not in model_card.OMITTED_FIELDS
    }


def test_a_card_edited_by_hand_is_not_overwritten(run: Path) -> None:
    target = run / "model" / "README.md"
    target.write_text("# mine\n")
    assert write_card(run) == target and target.read_text() == "# mine\n"
    target.write_text(f"{model_card.MARKER}\nold")
    assert "# ants, bees" in write_card(run).read_text()


def test_a_folder_without_a_run_or_a_model_is_rejected_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no folder"):
        write_card(tmp_path / "nowhere")
    shutil.rmtree(run / "model")
    with pytest.raises(OutputError, match=r"model\.json cannot be read"):
        write_card(run)
    assert not (run / "model").exists()
