"""Runs beside each other: what differs, how sure that is, and which folders are no runs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import WITHOUT_PAGE, call

import baseline
import baseline.experiments.repeats
from baseline import Progress, compare_runs, paired_test, run_seeds
from baseline.cli import output
from baseline.cli.printing import seeds_table
from baseline.errors import DataError, OutputError, RecipeError
from baseline.experiments.compare import list_runs
from baseline.experiments.compare_recipes import compare_recipes
from baseline.experiments.repeats import SeedRuns
from baseline.report.headline import headline_view
from baseline.runs.folder import read_predictions

pytestmark = pytest.mark.usefixtures("no_page")


def altered(done: baseline.Baseline, folder: Path, predictions: Any = None, manifest: Any = None) -> Path:
    """A copy of the finished run with other predictions, other words in its manifest, or both."""
    shutil.copytree(done.folder, folder)
    if predictions is not None:
        predictions(done.predictions.copy()).to_csv(folder / "predictions.csv", index=False)
    if manifest is not None:
        told = json.loads((folder / "manifest.json").read_text())
        manifest(told)
        (folder / "manifest.json").write_text(json.dumps(told))
    return folder


def big(share: float) -> Any:
    """Predictions of 1,000 test images, of which this share is right."""

    def rows(table: pd.DataFrame) -> pd.DataFrame:
        test = table[table["split"] == "test"]
        many = pd.concat([test] * 100, ignore_index=True)
        wrong = many["label"].map({"ants": "bees", "bees": "ants"})
        paths = [f"{at}.jpg" for at in range(len(many))]
        return many.assign(path=paths, predicted=many["label"].where(many.index < share * len(many), wrong))

    return rows


@pytest.fixture(scope="module")
def ended(images: Path, body: dict[str, str], tmp_path_factory: pytest.TempPathFactory, done: baseline.Baseline) -> Any:
    """What the command said of two seeds, on the split of the shared run."""
    folder = tmp_path_factory.mktemp("seeds")
    recipe = folder / "short.toml"
    stage = '[[stage]]\ntrains = "head"\nepochs = 1\nlr = 1e-3\n'
    settings = "".join(
        f'{name} = "{value}"\n' for name, value in {**body, "split_file": done.folder / "split.csv"}.items()
    )
    recipe.write_text(f"image_size = 48\n{settings}{stage}")
    return call("run", recipe, "--data", images, "--out", folder / "out", "--seed", 3, "--seeds", 2, code=WITHOUT_PAGE)


@pytest.fixture
def seeds(ended: Any) -> SeedRuns:
    assert ended.returncode == 0, ended.stderr
    file = next(word for word in ended.stdout.split() if word.endswith("seeds.json"))
    return SeedRuns(**json.loads(Path(file).read_text()))


def test_seeds_are_runs_with_mean_and_spread(ended: Any, seeds: SeedRuns) -> None:
    folder = Path(seeds.folder)
    assert sorted(path.name for path in folder.iterdir()) == ["seed-3", "seed-4", "seeds.json"]
    accuracies = []
    for number, run in zip((3, 4), seeds.runs, strict=True):
        manifest = json.loads((folder / f"seed-{number}" / "manifest.json").read_text())
        assert run["seed"] == manifest["recipe"]["seed"] == number
        assert run["accuracy"] == manifest["metrics"]["test"][headline_view(manifest)]["accuracy"]
        accuracies.append(run["accuracy"])
    assert (seeds.mean, seeds.sd) == pytest.approx((statistics.mean(accuracies), statistics.stdev(accuracies)))
    assert (seeds.least, seeds.most) == (min(accuracies), max(accuracies))
    assert seeds.split == "test" and seeds.same_images is True
    assert re.search(r"test accuracy of 2 seeds: mean [\d.]+%, std [\d.]+ points, [\d.]+% to [\d.]+%", ended.stdout)
    assert "seed 4, 2 of 2" in ended.stderr and "different test split" not in ended.stdout


def test_other_test_images_by_seed_are_said(
    done: baseline.Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def drawn(*_: Any, seed: int, out: Path, **__: Any) -> baseline.Baseline:
        out.mkdir(parents=True)
        done.predictions.assign(path=f"{seed}" + done.predictions["path"]).to_csv(out / "predictions.csv", index=False)
        shutil.copy(done.folder / "manifest.json", out)
        return done

    monkeypatch.setattr(baseline.make, "make_baseline", drawn)
    found = run_seeds(2, "images", out=tmp_path, progress=Progress())
    assert not found.same_images and found.sd == 0
    output.print_table(seeds_table(found))
    assert "Each seed uses a different test split" in capsys.readouterr().out
    one = run_seeds(1, "images", out=tmp_path / "one", progress=Progress())
    assert one.sd is None
    output.print_table(seeds_table(one))
    assert "sd" not in capsys.readouterr().out.splitlines()[0]


def test_seeds_are_refused_before_anything_is_trained(seeds: SeedRuns, images: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="seed-4 holds a finished run"):
        run_seeds(2, images, out=_only(Path(seeds.folder) / "seed-4", tmp_path), seed=3, progress=Progress())
    with pytest.raises(OutputError, match="holds a finished run"):
        run_seeds(1, images, out=seeds.folder, seed=9, progress=Progress())
    with pytest.raises(RecipeError, match="--seeds must be at least 1, got 0"):
        run_seeds(0, images, progress=Progress())
    with pytest.raises(DataError):
        run_seeds(2, tmp_path / "nowhere", out=tmp_path / "none", progress=Progress())
    assert not (tmp_path / "none").exists() and not (tmp_path / "out" / "seed-3").exists()


def _only(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "out" / run.name)
    return folder / "out"


def test_two_seeds_do_not_differ_beyond_noise(seeds: SeedRuns) -> None:
    found = compare_runs([run["folder"] for run in seeds.runs])
    assert found.table["differs"].tolist() == ["", "seed: 4 (was 3)"]
    assert "on 10 images:" in found.sentences[0] and ": not significant (p" in found.sentences[0]


def test_the_table_holds_what_the_manifests_say(done: baseline.Baseline, seeds: SeedRuns, tmp_path: Path) -> None:
    def keep_tta(manifest: dict[str, Any]) -> None:
        manifest["metrics"]["valid"]["plain"]["accuracy"] = 0.0

    first_run = altered(done, tmp_path / "first", manifest=keep_tta)
    found = compare_runs([first_run, seeds.runs[0]["folder"]]).table
    numbers = done.metrics["test"]["tta"]
    first, other = found.to_dict("records")
    assert (first["accuracy"], first["low"], first["high"]) == (numbers["accuracy"], *numbers["interval"])
    for name in ("balanced_accuracy", "macro_f1", "ece"):
        assert (first[f"{name}_low"], first[f"{name}_high"]) == numbers["intervals"][name]
    assert first["seconds"] == pytest.approx(sum(done.manifest["seconds"].values()), abs=0.1)
    assert first["megabytes"] == round((done.folder / "model" / "model.safetensors").stat().st_size / 1e6, 1)
    manifest = json.loads((Path(seeds.folder) / "seed-3" / "manifest.json").read_text())
    scores = manifest["metrics"]["test"][headline_view(manifest)]
    assert other["difference"] == pytest.approx(scores["accuracy"] - numbers["accuracy"]) and other["shared"] == 10
    assert "seed: 3 (was 0)" in other["differs"] and "stages.1.epochs: 1 (was 4)" in other["differs"]
    assert "stages.2.trains: not set (was 3)" in other["differs"] and "title" not in other["differs"]


def test_a_real_difference_is_said_with_how_sure_it_is(done: baseline.Baseline, tmp_path: Path) -> None:
    one = altered(done, tmp_path / "one", big(0.8))
    other = altered(done, tmp_path / "other", big(0.9), lambda told: told["recipe"].update(image_size=64))
    found = compare_runs([one, other])
    assert "on 1,000 images: +10.0 points" in found.sentences[0]
    assert ": significant (p < 0.001)" in found.sentences[0]
    tables = (read_predictions(one), read_predictions(other))
    assert found.table["p"][1] == paired_test(*tables)["p"]
    unknown = compare_runs([one, altered(done, tmp_path / "code", big(0.9))])
    assert "The manifests have the same settings" in unknown.sentences[0]
    seed = altered(done, tmp_path / "seed", big(0.9), lambda told: told["recipe"].update(seed=8))
    words = compare_runs([one, seed]).sentences[0]
    assert ": inconclusive (p < 0.001)" in words and "differ in the seed only" in words


def test_two_runs_are_compared_without_torch_and_scipy(done: baseline.Baseline) -> None:
    """Their imports take longer than the comparison."""
    code = (
        "import sys; from baseline import compare_runs; compare_runs([sys.argv[1]] * 2); "
        "assert not {'torch', 'fastai', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(done.folder)], check=True)


def test_many_comparisons_are_held_to_more(done: baseline.Baseline, tmp_path: Path) -> None:
    one = altered(done, tmp_path / "one", big(0.8))
    folders = [one]
    for number, share in enumerate((0.805, 0.8, 0.8, 0.9)):
        folders.append(altered(done, tmp_path / f"{number}", big(share)))
    alone = compare_runs([one, folders[1]])
    plain = [compare_runs([one, folder]).table["p"][1] for folder in folders[1:]]
    together = compare_runs(folders)
    assert plain[0] < 0.05 < 3 * plain[0] and ": significant (p" in alone.sentences[0]
    assert together.table["p"][1:].tolist() == pytest.approx([3 * plain[0], 1, 1, 4 * plain[3]])
    assert ": not significant (p" in together.sentences[0]
    assert ": significant (p" in together.sentences[3]
    assert "Holm-corrected for 4 comparisons" in together.sentences[4]


def test_other_test_images_are_refused_unless_anyway(done: baseline.Baseline, tmp_path: Path) -> None:
    fewer = altered(done, tmp_path / "fewer", lambda table: table.drop(table.index[table["split"] == "test"][0]))
    with pytest.raises(DataError, match="different test images: 9 and 10, of which they share 9"):
        compare_runs([done.folder, fewer])
    assert compare_runs([done.folder, fewer], anyway=True).table["shared"][1] == 9
    none = altered(done, tmp_path / "none", lambda table: table.assign(path="x" + table["path"]))
    assert "they share no image" in compare_runs([done.folder, none], anyway=True).sentences[0]
    torn = altered(done, tmp_path / "torn", lambda table: table.assign(label="ants"))
    with pytest.raises(DataError, match="labeled differently in the two tables"):
        compare_runs([done.folder, torn], anyway=True)


def test_a_run_without_a_test_split_is_compared_on_valid(done: baseline.Baseline, tmp_path: Path) -> None:
    valid = altered(done, tmp_path / "valid", manifest=lambda told: told["metrics"].pop("test"))
    found = compare_runs([done.folder, valid])
    assert set(found.table["split"]) == {"valid"} and "on 4 images" in found.sentences[0]


def test_manifests_of_older_runs_are_compared_on_what_they_tell(done: baseline.Baseline, tmp_path: Path) -> None:
    def older(told: dict[str, Any]) -> None:
        del told["format"], told["calibration"]
        for numbers in told["metrics"].values():
            for kind in ("plain", "tta"):
                numbers[kind] = {key: numbers[kind][key] for key in ("accuracy", "interval", "wrong", "loss")}

    old = altered(done, tmp_path / "old", manifest=older)
    row = compare_runs([done.folder, old]).table.iloc[1]
    assert row["accuracy"] == done.metrics["test"][headline_view(done.manifest)]["accuracy"]
    assert pd.isna(row["macro_f1"])
    assert call("compare", done.folder, old).returncode == 0


def test_compare_prints_and_writes_csv_and_a_page_of_its_own(
    done: baseline.Baseline, seeds: SeedRuns, tmp_path: Path
) -> None:
    markup = altered(done, tmp_path / "a<b>[/x]")
    runs = [done.folder, markup, seeds.runs[0]["folder"]]
    files = [tmp_path / f"t.{ending}" for ending in ("csv", "html", "md", "tex")]
    options = zip(("--csv", "--html", "--markdown", "--latex"), files, strict=True)
    ended = call("compare", *runs, *(word for option in options for word in option))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "" and "not significant" in ended.stdout and "a<b>[/x]" in ended.stdout.replace("\n", "")
    read = pd.read_csv(tmp_path / "t.csv")
    assert len(read) == 3 and read["accuracy"][0] == done.metrics["test"][headline_view(done.manifest)]["accuracy"]
    page = (tmp_path / "t.html").read_text()
    assert page.count("<tr>") == 4 and page.count('scope="col"') == 10
    assert "a&lt;b&gt;" in page and "a<b>" not in page and "src=" not in page and "default-src 'none'" in page
    assert '<th scope="col" class="n">calibration error</th>' in page and "difference_low" not in page
    accuracy, (low, high) = read["accuracy"][0], done.metrics["test"][headline_view(done.manifest)]["interval"]
    cell = f"{accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f})"
    assert (
        f"{accuracy:.1%} <small>({100 * low:.1f} to" in page
        and cell in files[2].read_text()
        and cell.replace("%", r"\%") in files[3].read_text()
    )
    settings = page[page.index("Settings that differ") :]
    assert "The same as in the first run." in settings and "<li>seed: 3 (was 0)</li>" in settings
    assert files[2].read_text().count("\n") == 5 and files[3].read_text().count(r" \\") == 4


def seed_runs(done: baseline.Baseline, folder: Path, accuracies: list[float], first: int = 0) -> str:
    """Write runs of several seeds with these accuracies, and return the pattern that matches them."""
    for seed, accuracy in enumerate(accuracies, first):

        def set_result(manifest: dict[str, Any], seed: int = seed, accuracy: float = accuracy) -> None:
            manifest["recipe"]["seed"] = seed
            for view in ("plain", "tta"):
                manifest["metrics"]["test"][view]["accuracy"] = accuracy

        altered(done, folder / f"seed-{seed}", manifest=set_result)
    return f"{folder}/seed-*"


def test_patterns_compare_recipes_over_seeds(done: baseline.Baseline, tmp_path: Path) -> None:
    from scipy.stats import ttest_ind, ttest_rel

    one, other = [0.80, 0.84, 0.82], [0.85, 0.88, 0.88]
    patterns = [seed_runs(done, tmp_path / "a", one), seed_runs(done, tmp_path / "b", other)]
    result = compare_recipes(patterns)
    row = result.table.iloc[1]
    expected = ttest_rel(other, one)
    low, high = expected.confidence_interval()
    assert (row["runs"], row["mean"], row["difference"]) == (3, pytest.approx(0.87), pytest.approx(0.05))
    assert (row["p"], row["difference_low"], row["difference_high"]) == pytest.approx((expected.pvalue, low, high))
    assert "over 3 seeds, paired: accuracy +5.0 points (+2.5 to +7.5): significant (p = 0.013)." in result.sentences[0]
    others = seed_runs(done, tmp_path / "c", other, first=7)  # other seeds, other splits
    unpaired = compare_recipes([patterns[0], others])
    assert unpaired.table["p"][1] == pytest.approx(ttest_ind(other, one, equal_var=False).pvalue)
    assert "over 3 and 3 runs" in unpaired.sentences[0]
    ended = call("compare", *patterns, "--markdown", tmp_path / "t.md", "--html", tmp_path / "t.html")
    assert ended.returncode == 0 and "over 3 seeds, paired" in " ".join(ended.stdout.split()), ended.stderr
    assert "| 87.0% |" in (tmp_path / "t.md").read_text()
    assert "Comparison of recipes over seeds" in (tmp_path / "t.html").read_text()


def test_patterns_that_match_too_few_runs_get_one_line(done: baseline.Baseline, tmp_path: Path) -> None:
    two, one = seed_runs(done, tmp_path / "a", [0.8, 0.9]), seed_runs(done, tmp_path / "b", [0.8])
    for words, message in (
        ((two, one), "matches 1 finished runs; two or more were needed"),
        ((two, done.folder), "matches 1 finished runs"),
        ((two,), "Expected two or more patterns of run folders, got 1"),
        ((two, two, "--anyway"), "--anyway and --ensemble need run folders"),
    ):
        ended = call("compare", *words)
        assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_comparison_fits_a_phone(
    done: baseline.Baseline, tmp_path: Path, browser: Any, width: int
) -> None:
    other = altered(done, tmp_path / "other", big(0.9), lambda told: told["recipe"].update(seed=3))
    page = tmp_path / "page.html"
    page.write_text(compare_runs([done.folder, other], anyway=True).as_html())
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.documentElement.scrollHeight") < 2500
    tab.close()


@pytest.mark.parametrize("command", ["compare", "report-like"])
def test_folders_that_are_no_finished_runs_get_one_line(command: str, done: baseline.Baseline, tmp_path: Path) -> None:
    half = altered(done, tmp_path / "half")
    (half / "manifest.json").unlink()
    newer = altered(done, tmp_path / "newer", manifest=lambda told: told.update(format=99))
    torn = altered(done, tmp_path / "torn")
    (torn / "manifest.json").write_text('{"recipe": ')
    other = altered(done, tmp_path / "other")
    (other / "manifest.json").write_text("[1]")
    gone = altered(done, tmp_path / "gone")
    (gone / "predictions.csv").unlink()
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "There is no folder"),
        (tmp_path / "empty", "is not a run folder: it has no manifest.json"),
        (half, "an unfinished run: it has no manifest.json"),
        (newer, "has format 99; this version of baseline reads up to 2. Update baseline."),
        (torn, "is damaged"),
        (other, "is not the manifest of a run"),
        (gone, "predictions.csv cannot be read"),
    ):
        if command == "compare":
            with pytest.raises((OutputError, DataError), match=message) as caught:
                compare_runs([done.folder, folder])
            assert "\n" not in str(caught.value)
        elif folder != gone:
            with pytest.raises(OutputError, match=message):
                baseline.runs.folder.read_manifest(folder)
    with pytest.raises(DataError, match="two or more run folders, got 1"):
        compare_runs([done.folder])


def test_a_folder_that_is_no_run_is_exit_code_2_with_one_line(done: baseline.Baseline, tmp_path: Path) -> None:
    for words in (("compare", done.folder, tmp_path), ("runs", tmp_path / "nowhere"), ("compare", done.folder)):
        ended = call(*words)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and ended.stderr.startswith("baseline: ")
        assert ended.stdout == ""


def test_runs_lists_finished_and_unfinished_ones(done: baseline.Baseline, seeds: SeedRuns, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(seeds.folder, runs / "seeds")
    altered(done, runs / "late", manifest=lambda told: told.update(finished="2999-01-01T00:00:00+00:00"))
    half = altered(done, runs / "half")
    (half / "manifest.json").unlink()
    altered(done, runs / "newer", manifest=lambda told: told.update(format=99))
    (runs / "default-20261123-010203").mkdir()
    (runs / "notes").mkdir()
    (runs / "evaluation").mkdir()
    for name in ("evaluation.html", "predictions.csv", "metrics.json"):  # as `baseline evaluate --out` leaves it
        (runs / "evaluation" / name).touch()
    found = list_runs(runs)
    names = [str(Path(run).relative_to(runs)) for run in found["run"]]
    assert sorted(names[:3]) == ["default-20261123-010203", "half", "newer"]
    assert names[3:] == ["seeds/seed-3", "seeds/seed-4", "late"]
    states = dict(zip(names, found["state"], strict=True))
    assert states["half"] == states["default-20261123-010203"] == "unfinished" and "format 99" in states["newer"]
    assert found["accuracy"].iloc[-1] == done.metrics["test"][headline_view(done.manifest)]["accuracy"]
    assert found["arch"].iloc[-1] == "tf_efficientnet_lite0"
    printed = call("runs", runs).stdout
    assert "unfinished" in printed and "2999-01-01" in printed and "notes" not in printed
    (tmp_path / "bare").mkdir()
    assert call("runs", tmp_path / "bare").stdout == "There are no runs in this folder.\n"


def test_classes_with_names_like_numbers_or_nothing_are_read_as_text(tmp_path: Path) -> None:
    rows = {
        "path": ["1.jpg", "2.jpg"],
        "split": "test",
        "label": ["007", "NA"],
        "predicted": ["007", "7"],
        "p_007": 0.5,
    }
    more = {"plain_predicted": "7", **dict.fromkeys(("confidence", "loss", "plain_confidence", "plain_loss"), 0.5)}
    pd.DataFrame({**rows, **more}).to_csv(tmp_path / "predictions.csv", index=False)
    read = read_predictions(tmp_path)
    assert read["label"].tolist() == ["007", "NA"] and read["predicted"].tolist() == ["007", "7"]
    assert read["p_007"].tolist() == [0.5, 0.5]
    (tmp_path / "predictions.csv").write_text("")
    with pytest.raises(DataError, match="is not a table of a run"):
        read_predictions(tmp_path)
