"""Time estimates have no side effects, and a budget gets the most promising plan that fits."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import baseline
from baseline import Stage
from baseline.errors import RecipeError
from baseline.runs.timing import bottleneck, time_by_part
from baseline.training import budget
from baseline.training.budget import Throughput, estimate_seconds
from baseline.training.budget_plan import expected_error, fit_to_budget

IMAGES = {"train": 1000, "valid": 100, "test": 200}


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEASUREMENTS", {})


@pytest.fixture
def throughput(learn: Any, settled: tuple) -> Throughput:
    return Throughput(learn.model, learn.splitter, settled[0], images=4)


def test_estimate_has_no_side_effects(learn: Any, settled: tuple) -> None:
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    state = torch.get_rng_state()
    moving = settled[0].changed(stages=(Stage("head", 1, augment=False), Stage("all", 1, 1e-3, batch_norm="train")))
    estimate = estimate_seconds(Throughput(learn.model, learn.splitter, moving, images=4), moving, IMAGES)
    assert len(estimate.stages) == 2 and 0 < estimate.total < 600
    assert all(torch.equal(before[name], value) for name, value in learn.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in learn.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_is_measured_once_and_another_one_anew(
    learn: Any, throughput: Throughput, settled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = settled[0].changed(stages=(Stage("head", 1, augment=False), Stage("all", 1, 1e-3)))
    first = estimate_seconds(throughput, recipe, IMAGES)
    other = baseline.learner(learn.dls, recipe.changed(head="fastai"), path=tmp_path)
    monkeypatch.setattr(Throughput, "_seconds", lambda *_: 1.0)
    again = baseline.learner(learn.dls, recipe, path=tmp_path)  # other weights in the head
    assert estimate_seconds(Throughput(again.model, again.splitter, recipe, images=4), recipe, IMAGES) == first
    for network, batch in ((other, {"images": 4}), (learn, {"images": 2})):
        changed = Throughput(network.model, network.splitter, recipe, **batch)
        assert estimate_seconds(changed, recipe, IMAGES).total > IMAGES["train"]
    changed = Throughput(learn.model, learn.splitter, recipe.changed(precision="bfloat16"), images=4)
    assert estimate_seconds(changed, recipe, IMAGES).total > IMAGES["train"]


def test_estimate_grows_with_images_epochs_and_layers_and_shrinks_with_cached_outputs(
    throughput: Throughput, settled: tuple
) -> None:
    def seconds(*stages: Stage, images: dict = IMAGES, cached: tuple = (), own_parts: tuple = ()) -> float:
        return estimate_seconds(throughput, settled[0].changed(stages=stages), images, cached, own_parts).total

    head = Stage("head", 1, 1e-3, augment=False)
    assert seconds(head) < seconds(head, images={**IMAGES, "train": 4000})
    assert seconds(head) < seconds(head, Stage("all", 1, 1e-3)) < seconds(head, Stage("all", 3, 1e-3))
    assert seconds(head, cached=(1,)) < seconds(head)
    assert seconds(head, head) < 1.5 * seconds(head), "one pass serves both"
    many = dataclasses.replace(head, epochs=5)
    assert seconds(many, own_parts=("CutMix",)) > 2 * seconds(many), "every epoch runs the whole network"
    assert seconds(Stage("probe", 1)) < seconds(many, own_parts=("CutMix",))


def test_estimate_includes_the_features_of_the_probe_beside_the_result(throughput: Throughput, settled: tuple) -> None:
    recipe = settled[0].changed(stages=(Stage("probe", 1), Stage("all", 1, 1e-3)), tta=("flip",))
    estimate = estimate_seconds(throughput, recipe, IMAGES)
    per_image = throughput.measured[max(key for key in throughput.measured if key[0] == "frozen")]
    assert estimate.reference == pytest.approx(2 * IMAGES["test"] * per_image)
    assert estimate.total == pytest.approx(sum(estimate.stages) + estimate.evaluation + estimate.reference)
    plain = estimate_seconds(throughput, recipe.changed(tta=()), {**IMAGES, "test": 0})
    assert plain.reference == pytest.approx(IMAGES["valid"] * per_image)
    for changes in ({"stages": (Stage("probe", 1),)}, {"stages": (Stage("head", 1, augment=False), recipe.stages[1])}):
        assert estimate_seconds(throughput, recipe.changed(**changes), IMAGES).reference == 0
    assert estimate_seconds(throughput, recipe, IMAGES, cached=(1,)).reference == 0


def test_larger_budget_never_expects_a_higher_error(throughput: Throughput, settled: tuple) -> None:
    still = settled[0].changed(augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}, image_size=96)
    bases = [
        still.changed(stages=(Stage("head", 1, augment=False), Stage(3, 1, 1e-4))),
        still.changed(stages=(Stage("head", 2, augment=False),)),
    ]
    cheapest = estimate_seconds(throughput, bases[1].changed(image_size=64), IMAGES).total
    expected_errors = []
    for times in (2, 5, 20, 100):
        plan, reason = fit_to_budget(throughput, bases, IMAGES, times * cheapest)
        assert 1.15 * estimate_seconds(throughput, plan, IMAGES).total <= times * cheapest
        assert plan.model.image_size <= 96 and str(plan.model.image_size) in reason
        expected_errors.append(expected_error(plan))
    assert expected_errors == sorted(expected_errors, reverse=True) and expected_errors[-1] < expected_errors[0]
    assert fit_to_budget(throughput, bases, IMAGES, 10**6)[0].stages[-1].epochs == 12


def test_given_image_size_is_kept(throughput: Throughput, settled: tuple) -> None:
    base = settled[0].changed(image_size=80, stages=(Stage("head", 1, augment=False), Stage(3, 1, 1e-4)))
    assert fit_to_budget(throughput, [base], IMAGES, 10**6, resizable=False)[0].model.image_size == 80


def test_too_small_budget_is_refused_with_the_time_needed(throughput: Throughput, settled: tuple) -> None:
    with pytest.raises(RecipeError, match=r"leaves 0\.0 s .* needs about [\d.]+ s"):
        fit_to_budget(throughput, [settled[0]], IMAGES, -3)


def test_run_ends_within_its_budget(
    images: Path, body: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # independent of other load on the machine
    start = time.perf_counter()
    done = baseline.make_baseline(
        images, budget="12s", out=tmp_path / "run", progress=baseline.Progress(), image_size=64, **body
    )
    assert time.perf_counter() - start < 12
    assert done.manifest["recipe"]["training"]["budget"] == "" and "left" in done.manifest["reasons"]["budget"]
    assert (tmp_path / "run" / "predictions.csv").exists()
    again = baseline.load_recipe(tmp_path / "run/manifest.json")
    assert again.stages == done.recipe.stages and again.model.image_size == done.recipe.model.image_size


def test_bottleneck_is_reported_with_a_remedy() -> None:
    stages = [{"features_seconds": 33.0, "laps": {"forward": 5.0}}, {"laps": {"forward": 6.0, "backward": 7.0}}]
    where = time_by_part({"data": 1.0, "training": 99.0, "evaluation": 9.0}, stages)
    assert list(where)[:3] == ["outputs of frozen layers", "forward", "evaluation"] and where["forward"] == 11
    words = bottleneck(where, baseline.Recipe(), "cpu")
    assert "outputs of frozen layers (54%)" in words and "they are cached now" in words
    for name in where:
        assert "faster: " in bottleneck({name: 60.0}, baseline.Recipe(), "cuda")
