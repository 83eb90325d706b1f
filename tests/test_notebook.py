"""Notebooks: what results show, progress in one line, and the examples executed without noise in their outputs."""

from __future__ import annotations

import io
import re
import shutil
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_kaggle import EXAMPLES, kaggle, notebook

import baseline
from baseline.experiments.ladder import Ladder
from baseline.experiments.learning_curve import LearningCurve
from baseline.notebook import NotebookOutput, card, interval_chart, text_table
from baseline.progress import ConsoleProgress

__all__ = ["kaggle"]

NOISE = re.compile("Warning|Traceback|deprecated|IProgress", re.IGNORECASE)


def check_html(html: str) -> None:
    """The page is well-formed, and takes its colors from the notebook, whether that is light or dark."""
    ElementTree.fromstring(html.replace("xlink:href", "href"))
    text = re.sub(r"<(defs|clipPath)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert "#22262b" not in text and "color:black" not in text and "background" not in text
    assert "<script" not in html and "<style" not in html and "http" not in html


def test_a_run_and_its_model_show_the_number_its_interval_and_the_report(done: baseline.Baseline) -> None:
    scores = done.metrics["test"]["tta"]
    low, high = scores["interval"]
    for shown in (done._repr_html_(), done.model._repr_html_()):
        assert shown is not None
        check_html(shown)
        assert f"{scores['accuracy']:.1%}" in shown and f"({low:.1%} to {high:.1%})" in shown
        assert "report.html</a>" in shown and "<svg" in shown
    assert "95% confidence interval" in (done._repr_html_() or "")
    assert repr(done) == f"Baseline({str(done.folder)!r})"


def test_a_model_folder_alone_shows_its_network(tiny: Path) -> None:
    shown = baseline.load(tiny)._repr_html_()
    check_html(shown)
    assert "test_efficientnet, 48 px" in shown and "3 classes: ants, bees, wasps" in shown and "<svg" not in shown


def test_an_audit_shows_its_findings_and_escapes_names(images: Path, tmp_path: Path) -> None:
    for name in ("<b>ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(4):
            shutil.copy(images / "ants/00.jpg", tmp_path / name / f"{number}.jpg")
    result = baseline.audit(baseline.image_table(tmp_path))
    shown = result._repr_html_()
    check_html(shown)
    assert "8 images: " in shown and "conflict" in shown and "<b>" not in shown
    assert repr(result).startswith("Audit('8 images: ")


def test_a_comparison_shows_every_run(done: baseline.Baseline, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(done.folder, other)
    result = baseline.compare_runs([done.folder, other])
    shown = result._repr_html_()
    check_html(shown)
    assert result.sentences[0] in shown and shown.count("<circle") == 2 and "calibration error" in shown
    assert shown.count("report.html</a>") == 2


def test_a_heading_is_above_the_text_of_its_column() -> None:
    rows = [["a", "12", "a long sentence that says what is there", "1"], ["b", "3", "short", "2"]]
    cells = re.findall(r"text-align:(left|right)", text_table(["finding", "images", "details", "p"], rows))
    assert cells == 3 * ["left", "right", "left", "right"]


def test_progress_without_lines_cannot_be_opened() -> None:
    output = NotebookOutput()
    assert output.html("predicting: 8 of 8") == "<div>predicting: 8 of 8</div>"
    output.lines.append("reading images")
    assert "<details" in output.html("predicting: 8 of 8")


def test_the_lines_of_progress_have_a_font_of_their_own_and_break_between_words() -> None:
    """nbconvert and JupyterLab show what is in `pre` in the font of text, and break it anywhere."""
    output = NotebookOutput()
    output.lines.append("columns:  none; the folders are the classes")
    style = re.search(r'<pre style="([^"]*)">', output.html(""))
    assert style and {"font-family:monospace", "word-break:normal"} <= set(style[1].split(";"))


def test_an_error_is_its_message_and_the_line_of_the_cell() -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    with redirect_stdout(io.StringIO()) as printed:
        shell.run_cell("import baseline\nread = lambda: baseline.image_table('nowhere')\nread()")
    message, shown = "DataError: There is no folder or file", re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())
    assert message in shown and shown.strip().splitlines()[:2] == [
        "line 3: read()", "line 2: read = lambda: baseline.image_table('nowhere')"
    ]  # fmt: skip
    assert len(shown.strip().splitlines()) == 3


def test_a_ladder_and_a_curve_show_their_charts(tmp_path: Path) -> None:
    rows = [
        {"arch": "resnet18", "variant": name, "words": f"{name} & co", "images": 9, "accuracy": 0.8, "low": 0.5,
         "high": 0.9, "seconds": 3.0}
        for name in ("head", "all")
    ]  # fmt: skip
    ladder = Ladder(tmp_path, "test", pd.DataFrame(rows), ["Recommended: head <1>.", "It is faster."])
    points = [
        {"variant": "head", "size": size, "seed": 0, "images": size, "accuracy": 0.5, "run": ""} for size in (4, 8)
    ]
    fit = {
        "floor": 0.0,
        "scale": 0.5,
        "exponent": 0.2,
        "doubled": {"images": 16},
        "forecast": [(8, 0.4, 0.6), (16, 0.4, 1)],
    }
    curve = LearningCurve(tmp_path, "test", pd.DataFrame(points), {"head": fit}, {}, ["Twice as many gain 1 point."])
    (tmp_path / "ladder.html").touch()
    for result in (ladder, curve):
        shown = result._repr_html_()
        check_html(shown)
        assert "<svg" in shown and "currentColor" in shown
    assert "Recommended: head &lt;1&gt;." in ladder._repr_html_() and "ladder.html</a>" in ladder._repr_html_()
    assert "ladder.html</a>" not in curve._repr_html_()


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.871, 0.876), (1.0, 1.0), (0.0, 0.0), (0.49, 0.51)])
def test_an_interval_is_drawn_inside_its_chart(interval: tuple[float, float]) -> None:
    chart = interval_chart([("a run", sum(interval) / 2, *interval)], "accuracy")
    root = ElementTree.fromstring(chart)
    width = float(root.attrib["viewBox"].split()[2])
    positions = [float(x) for x in re.findall(r'(?:cx="|M|H)([\d.]+)', chart)]
    assert positions and all(0 < x < width for x in positions)


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "a&b <i>.html"
    file.touch()
    shown = card(
        "<i>", [interval_chart([("<i>", 0.5, 0.4, 0.6)], "<i>"), text_table(["<i>"], [["<i>"]])], ["<i>"], [file]
    )
    check_html(shown)
    assert "<i>" not in shown and "a%26b%20%3Ci%3E.html" in shown


class Shown:
    """What IPython's `display` returns, and what was shown."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        self.outputs.append(data)


def test_progress_is_one_output_whose_lines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    output = NotebookOutput()
    output._handle = shown = Shown()
    progress = ConsoleProgress()
    monkeypatch.setattr(progress, "cell", output)
    progress.log("reading <b>images</b>")
    with progress.bar("decoding", 40) as bar:
        for _ in range(40):
            bar.step()
    progress.log("report: runs/mine")
    assert len(shown.outputs) < 12, "the bar is drawn a few times a second"
    last = shown.outputs[-1]
    assert last["text/plain"] == "report: runs/mine" and last["text/html"].count("runs/mine") == 2
    assert "reading &lt;b&gt;images&lt;/b&gt;" in last["text/html"] and "decoding" not in last["text/html"]
    assert ConsoleProgress().cell is None, "no notebook runs here"


SETUP = """
import os
import baseline
os.environ.update({environment!r})
os.chdir({folder!r})
make, load = baseline.make_baseline, baseline.load_recipe
def small(recipe):
    stages = [baseline.Stage("head", 2, 1e-2, augment=False)]
    return load(recipe).changed(image_size=32, arch="auto", weights="", stages=stages, presets={{}})
def make_small(images, recipe="default", preset="", **changes):
    return make(images, small(recipe), **changes)
baseline.make_baseline = make_small
baseline.load_recipe = lambda name: load(name).changed(image_size=32, presets={{}}, batch_size=16)
baseline.Recipe.with_preset = lambda recipe, preset: recipe
"""
"""Makes what follows take seconds: one stage, at 32 pixels."""


STEPS = """
import baseline
recipe = baseline.load_recipe("default")
table = baseline.split(baseline.image_table({images!r}), recipe)
recipe, weights, reasons = baseline.resolve(recipe, table)
dls = baseline.dataloaders(table, recipe)
"""


def test_the_first_steps_show_no_warnings_of_libraries(images: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(STEPS.format(images=str(images)))])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    assert book.cells[0].outputs == []


def test_the_notebooks_run_and_nothing_in_them_is_noise(images: Path, kaggle: Path, tmp_path: Path) -> None:
    """The Kaggle kernel and both notebooks, one after another in one kernel, which imports torch once."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for file in images.glob("*/*.jpg"):
        folder = tmp_path / "images" / ("val" if file.stem < "06" else "train") / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    environment = {"IMAGES": str(tmp_path / "images"), "BASELINE_KAGGLE": str(kaggle)}
    root = f"from pathlib import Path\nroot = Path({str(kaggle)!r})"
    cells: list[Any] = [SETUP.format(environment=environment, folder=str(tmp_path)), root]
    for name in ("kaggle_kernel", "ants_bees", "own_model"):
        example = notebook((EXAMPLES / f"{name}.py").read_text())
        code = ["".join(cell["source"]) for cell in example["cells"] if cell["cell_type"] == "code"]
        cells += code[1:] if name == "kaggle_kernel" else code  # the first one installs
    cells[-2] = cells[-2].replace('Stage("all", 12,', 'Stage("all", 2,')
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"]
    for output in outputs:
        text = output.get("text", "") + "".join(
            output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html")
        )
        assert not NOISE.search(text), text[:500]
    progress = [output for output in outputs if "<details>" in output.get("data", {}).get("text/html", "")]
    assert 2 <= len(progress) <= 8, "each call has one output"
    assert "8 rows" in "".join(output.get("text", "") for output in outputs)
    assert any("95% confidence interval" in output.get("data", {}).get("text/html", "") for output in outputs)
