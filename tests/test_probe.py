"""A probe stage solves for the head: logistic regression on the features of the frozen body."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from commands import call
from fastai.callback.core import Callback
from fastai.vision.data import ImageDataLoaders
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import baseline
from baseline import Progress, Recipe, Stage, make_baseline
from baseline.data.table_folds import MAX_PROBE_FOLD_IMAGES, describe_probe_folds
from baseline.errors import RecipeError, TrainingError
from baseline.evaluation.explain import describe_probe, describe_references
from baseline.runs.probe_reference import cross_validated_logits
from baseline.training.frozen import embeddings
from baseline.training.logistic import STRENGTHS, Problem, Solution, fit_logistic, search_strength
from baseline.training.probe import has_intercept, held_out_score, install, probe_folds

TINY: dict[str, Any] = {"arch": "test_efficientnet", "image_size": 32, "cache_gb": 0.0}


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights for a network of 0.5 MB: random ones, whose features still tell the drawn insects apart."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "test_efficientnet.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), file)
    TINY["weights"] = str(file)
    yield
    del TINY["weights"]


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def features(rows: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Correlated features of very different scales, and classes that overlap."""
    random = torch.Generator().manual_seed(rows)
    mixed = torch.randn(rows, width, generator=random) @ torch.randn(width, width, generator=random) / width**0.5
    weight = torch.randn(width, classes, generator=random)
    targets = (mixed @ weight + 6 * torch.randn(rows, classes, generator=random)).argmax(1)
    return mixed * 10 ** torch.linspace(-1, 1, width) + 1, targets


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_is_that_of_scikit_learn(classes: int, strength: float) -> None:
    values, targets = features(600, 80, classes)
    solution = fit_logistic(Problem(values, targets, classes), strength)
    standardized = ((values - solution.mean) / solution.scale).double().numpy()
    expected = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(standardized, targets.numpy())
    probabilities = solution.logits(values).softmax(1).numpy()
    assert np.abs(probabilities - expected.predict_proba(standardized)).max() < 2e-4
    assert solution.loss == pytest.approx(
        -np.log(probabilities[np.arange(600), targets.numpy()].astype(float)).mean(), rel=1e-4
    )


def test_class_weights_and_several_labels_are_those_of_scikit_learn() -> None:
    values, targets = features(600, 80, 3)
    weights = torch.tensor([0.5, 1.0, 4.0])
    solution = fit_logistic(Problem(values, targets, 3, weights), 0.01)
    standardized = ((values - solution.mean) / solution.scale).double().numpy()
    by_class = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8, class_weight=dict(enumerate(weights.tolist())))
    expected = by_class.fit(standardized, targets.numpy()).predict_proba(standardized)
    assert np.abs(solution.logits(values).softmax(1).numpy() - expected).max() < 1e-3

    several = torch.stack([targets == 0, targets > 0, values[:, 5] > values[:, 5].median()], 1).float()
    probabilities = fit_logistic(Problem(values, several, 3), 0.01).logits(values).sigmoid().numpy()
    for label in range(3):
        single = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8).fit(standardized, several[:, label].numpy())
        assert np.abs(probabilities[:, label] - single.predict_proba(standardized)[:, 1]).max() < 1e-3


def test_the_strength_has_the_lowest_held_out_loss() -> None:
    values, targets = features(300, 80, 3)
    fitted, held_out = Problem(values[:200], targets[:200], 3), Problem(values[200:], targets[200:], 3)

    def negative_loss(logits: Tensor, rows: Problem) -> tuple[float, float]:
        return 0.0, -float(rows.loss(logits)) / len(logits)

    strength, solution = search_strength([(fitted, held_out)], negative_loss)
    losses = {c: -negative_loss(fit_logistic(fitted, c).logits(held_out.features), held_out)[1] for c in STRENGTHS}
    assert strength == solution.strength == min(losses, key=lambda c: losses[c])
    assert strength not in (STRENGTHS[0], STRENGTHS[-1])


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(80), nn.Dropout(0.5), nn.Linear(80, 3, bias=False)),
        nn.Sequential(nn.BatchNorm1d(80), nn.Linear(80, 3)),
        nn.Linear(80, 3),
    ],
    ids=["no bias", "bias", "no BatchNorm"],
)
def test_the_head_holds_the_solution(head: nn.Module) -> None:
    values, targets = features(300, 80, 3)
    layers = head[1:] if isinstance(head, nn.Sequential) and isinstance(head[0], nn.Flatten) else head
    solution = fit_logistic(Problem(values, targets, 3), 0.1)
    assert solution.bias.abs().max() > 0.01
    install(solution, layers)
    with torch.no_grad():
        outputs = head.eval()(values)
    assert (outputs.softmax(1) - solution.logits(values).softmax(1)).abs().max() < 1e-4


def test_without_bias_more_classes_than_features_have_no_intercept() -> None:
    def head(width: int, bias: bool) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 6, bias=bias))

    assert [has_intercept(head(*case)) for case in ((4, False), (6, False), (4, True))] == [False, True, True]
    values, targets = features(300, 4, 6)
    solution = fit_logistic(Problem(values, targets, 6, intercept=False), 0.1)
    assert not solution.bias.any()


def test_other_heads_are_refused_in_a_line() -> None:
    solution = Solution(torch.ones(2, 4), torch.zeros(2), torch.zeros(4), torch.ones(4), 1.0, 0.0)
    with pytest.raises(TrainingError, match="the head is not one linear layer: it has Linear, ReLU, Linear"):
        install(solution, nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": (Stage("probe", 2),)}, "which takes no steps; needed: epochs 1 and no lr"),
        ({"stages": (Stage("probe", 1, 1e-3),)}, "which takes no steps"),
    ],
)
def test_a_recipe_says_what_a_probe_needs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().changed(**{"stages": (Stage("probe", 1),), **changes})


def test_the_run_is_scikit_learns_on_the_frozen_features(images: Path, no_page: None, tmp_path: Path) -> None:
    changes = {**TINY, "preset": "instant", "tta": ()}
    result = make_baseline(images, out=tmp_path / "run", progress=Progress(), **changes)
    assert [stage.trains for stage in result.recipe.stages] == ["probe"]
    (stage,) = result.history.stages
    (epoch,) = result.history.epochs.to_dict("records")
    assert epoch["trains"] == "probe" and epoch["best"] and epoch["lr"] == 0
    table = pd.read_csv(tmp_path / "run/split.csv").assign(group=None)
    rows = {split: table[table["split"] == split].reset_index(drop=True) for split in ("train", "valid")}
    plain = {split: embeddings(result.learner, part, result.recipe) for split, part in rows.items()}
    flips = 2 * embeddings(result.learner, rows["train"], result.recipe, ("flip",)) - plain["train"]
    random = torch.rand(len(rows["train"]), generator=torch.Generator().manual_seed(0)) < 0.5
    seen = torch.from_numpy(np.where(random[:, None], flips, plain["train"]))
    solution = fit_logistic(Problem(seen, torch.tensor(rows["train"]["label"].eq("bees").astype(int)), 2), 1.0)
    standardized = ((seen - solution.mean) / solution.scale).double().numpy()
    model = LogisticRegression(C=stage["strength"], max_iter=5000, tol=1e-8).fit(standardized, rows["train"]["label"])
    valid = ((torch.from_numpy(plain["valid"]) - solution.mean) / solution.scale).double().numpy()
    predictions = result.predictions[result.predictions["split"] == "valid"].set_index("path")
    ours = predictions.loc[rows["valid"]["path"], "p_bees"].to_numpy()
    assert np.abs(ours - model.predict_proba(valid)[:, 1]).max() < 2e-3
    again = make_baseline(images, out=tmp_path / "again", progress=Progress(), **changes)
    pd.testing.assert_frame_equal(again.predictions, result.predictions)


def test_a_fine_tune_that_makes_things_worse_is_not_kept(images: Path, no_page: None, tmp_path: Path) -> None:
    stages = (Stage("probe", 1), Stage(2, 1, 1.0, augment=False))
    result = make_baseline(
        images, "default", out=tmp_path / "run", progress=Progress(), stages=stages, presets={}, **TINY
    )
    best = result.history.epochs.set_index("stage")["best"]
    assert best[1] and not best.get(2, False)  # it may also have been given up in its first epoch
    alone = make_baseline(
        images, "default", out=tmp_path / "alone", progress=Progress(), stages=stages[:1], presets={}, **TINY
    )
    pd.testing.assert_frame_equal(alone.predictions, result.predictions)


class Bars(Progress):
    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.steps: Counter[str] = Counter()

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Any]:
        self.totals[title] = total
        yield SimpleNamespace(step=lambda n=1, note="": self.steps.update({title: n}))


def test_progress_bars_of_a_probe_reach_their_ends(images: Path, no_page: None, tmp_path: Path) -> None:
    bars = Bars()
    stages = (Stage("probe"), Stage("all", epochs=1))
    make_baseline(images, stages=stages, out=tmp_path / "run", progress=bars, **TINY)
    assert bars.totals == bars.steps and {"stage 1", "stage 2"} <= bars.totals.keys()
    assert "outputs of the frozen layers, all and their flips" in bars.totals  # twice as many as there are images


def test_several_labels(images: Path, no_page: None, tmp_path: Path) -> None:
    paths = sorted(images.rglob("*.jpg"))
    labels = [path.parent.name + (";even" if int(path.stem) % 2 == 0 else "") for path in paths]
    table = pd.DataFrame({"path": [str(path) for path in paths], "label": labels})
    result = make_baseline(table, preset="instant", out=tmp_path / "run", progress=Progress(), **TINY)
    assert result.metrics["valid"]["plain"]["micro_f1"] == pytest.approx(result.history.epochs["valid_micro_f1"][0])
    assert result.metrics["valid"]["plain"]["micro_f1"] > 0.5


def test_class_weights_change_the_solution(images: Path, no_page: None, tmp_path: Path) -> None:
    table = baseline.image_table(images)
    few = table[(table["label"] == "bees") | (table.groupby("label").cumcount() < 8)]
    runs = {
        balance: make_baseline(
            few, preset="instant", out=tmp_path / balance, progress=Progress(), class_balance=balance, **TINY
        )
        for balance in ("none", "weights", "sampler")
    }
    strengths = {balance: run.history.stages[0]["strength"] for balance, run in runs.items()}
    means = {name: run.predictions["p_ants"].mean() for name, run in runs.items()}
    assert means["weights"] == pytest.approx(means["sampler"], abs=0.02), strengths
    assert means["weights"] > means["none"] + 0.05, strengths


class Counting(Callback):
    def before_batch(self) -> None:
        raise AssertionError("not in a probe")


def test_what_cannot_act_on_a_probe_is_named(images: Path, no_page: None, tmp_path: Path) -> None:
    progress = Lines()
    make_baseline(
        images, preset="instant", out=tmp_path / "run", progress=progress, mixup=0.4, augment={"rotate": 10.0},
        cbs=[Counting()], **TINY,
    )  # fmt: skip
    (line,) = [line for line in progress.lines if "not used by the probe" in line]
    assert line.startswith("stage 1: rotate, Counting, mixup: not used")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head": "fastai"}, "the head is not one linear layer: it has BatchNorm1d, Linear, ReLU, "),
        ({"freeze": "fastai"}, "freeze is 'fastai'"),
        ({"loss_func": nn.MultiMarginLoss()}, "the loss is MultiMarginLoss"),
        ({"loss": "focal"}, "the loss is FocalLossFlat"),
        ({}, "there is no room for the features of all images"),
    ],
    ids=["head", "freeze", "own loss", "focal loss", "no room"],
)
def test_where_a_probe_is_not_possible_the_head_is_trained_by_steps(
    images: Path, no_page: None, tmp_path: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baseline.training import frozen

    if not changes:
        monkeypatch.setattr(frozen, "MEMORY_FRACTION", 0.0)
    progress = Lines()
    stages = (Stage("probe"), Stage(2, 1, 1e-3))
    result = make_baseline(images, stages=stages, out=tmp_path / "run", progress=progress, **TINY, **changes)
    (line,) = [line for line in progress.lines if "trained by gradient descent" in line]
    assert line.startswith(f"stage 1: {reason}") and line.endswith(", so the head is trained by gradient descent")
    head, _ = result.history.stages
    assert head["trains"] == "head" and head["lr"] > 0
    steps = head["epochs"] * (len(result.learner.dls.train_ds) // result.learner.dls.train.bs)
    assert steps >= 70
    assert not result.history.probe and "probe" not in result.manifest


def test_the_reference_is_what_the_probe_alone_predicts(images: Path, no_page: None, tmp_path: Path) -> None:
    changes = {"out": tmp_path / "run", "tta": (), "frozen_precision": "float32", **TINY}
    result = make_baseline(images, stages=(Stage("probe"), Stage(2, 1, 1e-3)), progress=Progress(), **changes)
    alone = make_baseline(images, stages=(Stage("probe"),), progress=Progress(), **{**changes, "out": tmp_path / "a"})
    probe, (split,) = result.manifest["probe"], set(result.metrics) - {"valid"} or {"valid"}
    assert probe["split"] == split and probe["images"] == result.metrics[split]["images"]
    assert probe["value"] == pytest.approx(alone.metrics[split]["tta"]["accuracy"])
    assert probe["difference"] == pytest.approx(result.metrics[split]["tta"]["accuracy"] - probe["value"])
    assert probe["strength"] == alone.history.stages[0]["strength"]
    assert "probe" not in alone.manifest
    stages = (Stage("head"), Stage(2, 1, 1e-3))
    assert "probe" not in make_baseline(images, stages=stages, out=tmp_path / "b", progress=Progress(), **TINY).manifest


def test_a_probe_on_dataloaders_of_the_users(images: Path, no_page: None, tmp_path: Path) -> None:
    from fastai.vision.augment import Resize

    dls = ImageDataLoaders.from_folder(images, valid_pct=0.4, seed=1, item_tfms=Resize(32), bs=8, num_workers=0)
    options = {name: value for name, value in TINY.items() if name not in ("image_size", "cache_gb")}
    recipe = Recipe(name="probe").changed(stages=(Stage("probe", 1),), **options)
    result = make_baseline(dls, recipe, out=tmp_path / "run", progress=Progress())
    accuracy = result.learner.validate()[1]
    assert accuracy == pytest.approx(result.history.epochs["valid_accuracy"][0])
    assert result.history.stages[0]["strength"] in STRENGTHS


def test_a_metric_chooses_the_strength(settled: tuple, learn: Any) -> None:
    score = partial(held_out_score, settled[0].changed(metric="accuracy", stages=(Stage("probe", 1),)))
    rows = Problem(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), 2)
    right = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 0.1], [0.0, 0.1]])
    sure = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.1, 0.0]])
    assert score(right, rows)[0] == 1.0 and score(sure, rows)[0] == 0.75
    assert score(right, rows)[1] < score(sure, rows)[1] < 0


def test_the_command_line_takes_the_preset(images: Path, no_page: None, tmp_path: Path) -> None:
    options = [f"--set={name}={value}" for name, value in TINY.items()]
    command = ("run", images, "--preset", "instant", *options)
    ended = call(*command, "--out", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/manifest.json").exists()
    assert "5-fold cross-validation on all 48 images: accuracy " in ended.stdout
    line = "cross-validation also evaluates all 48 images, as the test split is small"
    assert line in ended.stderr and line in call(*command, "--dry-run").stdout
    assert line not in call(*command, "--dry-run", "--split", "random").stdout


def test_an_image_is_evaluated_by_a_head_that_knows_nothing_of_its_fold() -> None:
    values, targets = features(90, 40, 3)
    folds, recipe = np.arange(90) % 5, Recipe()
    logits = cross_validated_logits(Problem(values, targets, 3), folds, recipe)
    held_out = torch.from_numpy(folds == 2)
    other = torch.where(held_out, (targets + 1) % 3, targets)
    changed = cross_validated_logits(Problem(values, other, 3), folds, recipe)
    assert torch.equal(logits[held_out], changed[held_out]) and not torch.equal(logits, changed)
    others = Problem(values, targets, 3).rows(~held_out)
    fitted = [fit_logistic(others, strength).logits(values[held_out]) for strength in STRENGTHS]
    assert min((one - logits[held_out]).abs().max() for one in fitted) < 1e-2
    noise = torch.randint(3, (90,), generator=torch.Generator().manual_seed(1))
    guessed = cross_validated_logits(Problem(values, noise, 3), folds, recipe).argmax(1)
    assert (guessed == noise).float().mean() < 0.55


def test_few_images_are_cross_validated(images: Path, grouped: Path, no_page: None, tmp_path: Path) -> None:
    progress, changes = Lines(), {**TINY, "stages": (Stage("probe", 1),), "group_col": "photographer"}
    result = make_baseline(grouped, out=tmp_path / "run", progress=progress, metric="log_loss", **changes)
    folds = result.manifest["folds"]
    assert (folds["folds"], folds["images"], folds["metric"]) == (5, 48, "log_loss") and folds["value"] > 0
    low, high = folds["own_interval"]
    assert low < folds["value"] < high
    (line,) = [line for line in progress.lines if line.startswith("cross-validation also evaluates all 48 images")]
    assert line.endswith("--split group evaluates the test split only.")
    assert describe_references(result.manifest)[-1] == (
        f"5-fold cross-validation on all 48 images: log loss {folds['value']:.3f} without TTA (95% confidence interval "
        f"{low:.3f} to {high:.3f})."
    )
    table = baseline.image_table(images)
    few = table[(table["label"] == "ants") | (table.groupby("label").cumcount() < 2)]
    small = make_baseline(few, out=tmp_path / "small", progress=progress, **TINY, preset="instant")
    assert "folds" not in small.manifest
    assert progress.lines.count("not cross-validated: a class has fewer than 3 images") == 1


@pytest.mark.parametrize(
    ("labels", "duplicates", "outside"),
    [
        (["a"] * 10 + ["b"] * 10 + ["c"], {}, [20]),
        (["a"] * 10 + ["b"] * 10 + ["c"], {3: 0, 20: 0}, [3, 20]),
        (["a"] * 10 + ["b"] * 10 + ["c", "c"], {20: 0, 21: 0}, [20, 21]),
        (["a"] * 10 + ["b"] * 10 + ["c;a"], {}, [20]),
        (["a"] * 10 + ["b"], {}, range(11)),
        (["a", "b", "c"], {}, range(3)),
    ],
    ids=["one image", "its duplicate", "two duplicates", "several labels", "one class is left", "no class is left"],
)
def test_a_class_of_one_image_is_fitted_to_in_every_fold(
    labels: list[str], duplicates: dict[int, int], outside: Sequence[int]
) -> None:
    rows = pd.DataFrame({"label": labels, "duplicate_id": [duplicates.get(n, -1) for n in range(len(labels))]})
    dls = SimpleNamespace(multilabel=";" in "".join(labels))
    frozen: Any = SimpleNamespace(recipe=Recipe(), learn=SimpleNamespace(dls=dls))
    folds = probe_folds(rows, frozen)
    assert np.flatnonzero(folds < 0).tolist() == list(outside)
    others = rows.drop(index=list(outside)).reset_index(drop=True)
    if len(others):
        assert folds.max() == 4
        assert np.array_equal(folds[folds >= 0], probe_folds(others, frozen))


def test_only_a_split_that_was_left_open_is_cross_validated() -> None:
    probe = Recipe().changed(stages=(Stage("probe", 1),), split="random")
    reason = "the images come without splits"
    assert describe_probe_folds(probe, MAX_PROBE_FOLD_IMAGES - 1, reason)
    assert not describe_probe_folds(probe, MAX_PROBE_FOLD_IMAGES, reason)
    assert not describe_probe_folds(probe, 40, "as given")
    assert not describe_probe_folds(probe.changed(split="provided"), 40, "the images come with splits")
    assert not describe_probe_folds(probe.changed(images_per_class=5), 40, reason)
    assert not describe_probe_folds(probe.changed(stages=(Stage("probe"), Stage(2, 1, 1e-3))), 40, reason)


def test_the_architecture_with_the_best_probe_is_chosen(
    images: Path, no_page: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baseline.training import choose_arch

    options = {name: value for name, value in TINY.items() if name not in ("weights", "arch")}
    real, lines = choose_arch.probe_epoch, Lines()

    def worse_for_others(recipe: Recipe, table: pd.DataFrame, progress: Progress) -> dict[str, float]:
        epoch = real(recipe.changed(arch="tf_efficientnet_lite0"), table, progress)
        return epoch if recipe.model.arch == "tf_efficientnet_lite0" else {**epoch, "valid_accuracy": 0.25}

    monkeypatch.setattr(choose_arch, "probe_epoch", worse_for_others)
    arch = "probe:resnet18,tf_efficientnet_lite0"
    result = make_baseline(images, preset="instant", arch=arch, out=tmp_path / "run", progress=lines, **options)
    assert result.recipe.model.arch == "tf_efficientnet_lite0"
    reason = result.manifest["reasons"]["arch"]
    assert reason.startswith("the best of 2 by their probes on valid, in ") and "resnet18 25.0%" in reason
    assert f"arch: tf_efficientnet_lite0 ({reason})" in lines.lines
    alone = make_baseline(
        images, preset="instant", arch="tf_efficientnet_lite0", out=tmp_path / "alone", progress=Progress(), **options
    )
    pd.testing.assert_frame_equal(alone.predictions, result.predictions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": False}, "compares pretrained weights: leave out"),
        ({"arch": "probe:resnet1"}, "no architecture 'resnet1'"),
    ],
)
def test_architectures_that_cannot_be_compared_are_refused(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_baseline(images, out=tmp_path / "run", progress=Progress(), image_size=32, **{"arch": "probe", **changes})


def test_a_single_architecture_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from baseline.training import choose_arch

    monkeypatch.setattr(choose_arch, "offline_weights", lambda name: iter([name] * (name == "resnet18")))
    monkeypatch.setattr(choose_arch, "probe_epoch", lambda *_: pytest.fail("a probe of the only one"))
    recipe, reason = choose_arch.choose_arch(Recipe().changed(arch="probe"), pd.DataFrame(), Progress())
    assert recipe.model.arch == "resnet18" and reason.startswith("the only one to compare")


def test_the_reference_has_the_metric_of_the_recipe(images: Path, no_page: None, tmp_path: Path) -> None:
    stages = (Stage("probe"), Stage(2, 1, 1e-3))
    result = make_baseline(images, stages=stages, metric="log_loss", out=tmp_path / "run", progress=Progress(), **TINY)
    probe, split = result.manifest["probe"], result.manifest["probe"]["split"]
    assert probe["metric"] == "log_loss"
    assert probe["value"] + probe["difference"] == pytest.approx(result.metrics[split]["tta"]["log_loss"])
    low, high = probe["interval"]
    assert low <= probe["difference"] <= high
    assert 0 < probe["p"] <= 1 and probe["beyond_noise"] == (not low <= 0 <= high)
    sentence = describe_probe(probe)
    assert sentence.startswith("Logistic regression on features of the frozen body: log loss 0.")
    assert re.search(r"\): (better, |worse, )?(not )?significant \(p [<=] \d\.\d\d\)\.$", sentence), sentence


def test_a_probe_that_is_kept_is_the_result(images: Path, no_page: None, tmp_path: Path) -> None:
    stages = (Stage("probe"), Stage("all", 1, 10.0))
    result = make_baseline(images, stages=stages, out=tmp_path / "run", progress=Progress(), **TINY)
    assert set(result.history.epochs.query("best")["trains"]) == {"probe"}  # so high a rate spoils the network
    probe = result.manifest["probe"]
    assert probe["kept"] and probe["difference"] == 0 and probe["p"] == 1
    assert probe["value"] == result.metrics[probe["split"]]["tta"]["accuracy"]
    assert describe_probe(probe).startswith("Fine-tuning was not better on the validation images, so the result is ")
    assert "changes it by" not in describe_probe(probe)


@pytest.mark.parametrize(("task", "metric"), [("single", "quadratic_kappa"), ("multilabel", "auto")])
def test_the_reference_decides_as_the_run_does(task: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from baseline.evaluation import cut_points
    from baseline.runs.probe_reference import probe_predictions

    monkeypatch.setattr(cut_points, "MIN_VALID_IMAGES", 10)
    rng = np.random.default_rng(0)
    score = np.repeat([0.0, 1.0, 2.0], 40)
    label = [str(int(value)) for value in score] if task == "single" else ["0;1" if value else "0" for value in score]
    rows = pd.DataFrame({"path": [str(n) for n in range(120)], "label": label, "split": ["valid", "test"] * 60})
    logits = np.stack([-(score**2), -((score - 1) ** 2), 2 - (score - 2) ** 2], 1)
    if task == "multilabel":
        logits = np.stack([score * 0 + 3, score * 2 - 5], 1)
    logits += rng.normal(size=logits.shape) / 10
    classes = [str(number) for number in range(logits.shape[1])]
    recipe = Recipe().changed(task=task, metric=metric)
    plain, fitted = (
        probe_predictions(rows, torch.from_numpy(logits), classes, recipe, fit_decisions=fit) for fit in (False, True)
    )
    is_test = rows["split"] == "test"
    correct = [(table["predicted"] == table["label"])[is_test].mean() for table in (plain, fitted)]
    assert correct[0] < 0.8 and correct[1] > 0.95


def test_a_resumed_run_has_the_reference(images: Path, no_page: None, tmp_path: Path) -> None:
    changes = {"stages": (Stage("probe"), Stage(2, 2, 1e-3)), "progress": Progress(), **TINY}
    whole = make_baseline(images, out=tmp_path / "whole", **changes)

    class Stop(Callback):
        def before_epoch(self) -> None:
            if self.epoch == 1:
                raise KeyboardInterrupt

    from baseline.training import checkpoint

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "MIN_SECONDS_BETWEEN", 0.0)
        patch.setattr(checkpoint, "MAX_TIME_FRACTION", 0)
        Stop.cacheable = True
        make_baseline(images, out=tmp_path / "run", cbs=[Stop()], **changes)
    Stop.before_epoch = lambda self: None
    resumed = make_baseline(images, out=tmp_path / "run", cbs=[Stop()], **changes)
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)
    probe, expected = ({**run.manifest["probe"], "seconds": 0} for run in (resumed, whole))
    assert probe == expected
