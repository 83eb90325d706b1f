"""Estimates change nothing, and a budget gets the plan that promises most and fits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import baseline
from baseline import RecipeError, Stage
from baseline.clock import bound_by, where_time_went
from baseline.planning import Rates, _promise, estimate, fitted

PHOTOS = {"train": 1000, "valid": 100, "test": 200}


@pytest.fixture
def rates(learn: Any, settled: tuple) -> Rates:
    return Rates(learn.model, learn.splitter, settled[0], photos=4)


def test_an_estimate_changes_nothing(learn: Any, settled: tuple) -> None:
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    state = torch.get_rng_state()
    moving = settled[0].changed(stages=(Stage("head", 1), Stage("all", 1, 1e-3, batch_norm="moving")))
    found = estimate(Rates(learn.model, learn.splitter, moving, photos=4), moving, PHOTOS)
    assert len(found.stages) == 2 and 0 < found.total < 600
    assert all(torch.equal(before[name], value) for name, value in learn.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in learn.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_more_photos_epochs_and_layers_take_longer_and_kept_outputs_less(rates: Rates, settled: tuple) -> None:
    def seconds(*stages: Stage, photos: dict = PHOTOS, ready: tuple = ()) -> float:
        return estimate(rates, settled[0].changed(stages=stages), photos, ready).total

    head = Stage("head", 1, 1e-3)
    assert seconds(head) < seconds(head, photos={**PHOTOS, "train": 4000})
    assert seconds(head) < seconds(head, Stage("all", 1, 1e-3)) < seconds(head, Stage("all", 3, 1e-3))
    assert seconds(head, ready=(1,)) < seconds(head)
    assert seconds(head, head) < 1.5 * seconds(head), "one pass serves both"


def test_a_larger_budget_never_promises_less(rates: Rates, settled: tuple) -> None:
    still = settled[0].changed(augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}, image_size=96)
    bases = [still.changed(stages=(Stage("head", 1), Stage(3, 1, 1e-4))), still.changed(stages=(Stage("head", 2),))]
    cheapest = estimate(rates, bases[1].changed(image_size=64), PHOTOS).total
    promised = []
    for times in (2, 5, 20, 100):
        plan, why = fitted(rates, bases, PHOTOS, times * cheapest)
        assert 1.15 * estimate(rates, plan, PHOTOS).total <= times * cheapest
        assert plan.image_size <= 96 and str(plan.image_size) in why
        promised.append(_promise(plan))
    assert promised == sorted(promised, reverse=True) and promised[-1] < promised[0]
    assert fitted(rates, bases, PHOTOS, 10**6)[0].stages[-1].epochs == 12


def test_a_size_that_was_asked_for_is_kept(rates: Rates, settled: tuple) -> None:
    base = settled[0].changed(image_size=80, stages=(Stage("head", 1), Stage(3, 1, 1e-4)))
    assert fitted(rates, [base], PHOTOS, 10**6, resizable=False)[0].image_size == 80


def test_a_budget_that_nothing_fits_is_refused_with_what_is_needed(rates: Rates, settled: tuple) -> None:
    with pytest.raises(RecipeError, match=r"leaves 0\.0 s .* needs about [\d.]+ s"):
        fitted(rates, [settled[0]], PHOTOS, -3)


def test_a_run_ends_within_its_budget(photos: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    done = baseline.make_baseline(photos, budget="40s", out=tmp_path / "run", show=baseline.Show())
    assert time.perf_counter() - began < 40
    assert done.manifest["recipe"]["budget"] == "" and "left" in done.manifest["reasons"]["budget"]
    assert (tmp_path / "run" / "predictions.csv").exists()
    again = baseline.load_recipe(tmp_path / "run/manifest.json")  # what a run of the manifest is made by: test_run.py
    assert again.stages == done.recipe.stages and again.image_size == done.recipe.image_size


def test_where_the_time_went_is_told_with_what_would_help() -> None:
    stages = [{"features_seconds": 30.0, "laps": {"forward": 5.0}}, {"laps": {"forward": 6.0, "backward": 7.0}}]
    where = where_time_went({"data": 1.0, "training": 99.0, "evaluation": 9.0}, stages)
    assert list(where)[:3] == ["outputs of frozen layers", "forward", "evaluation"] and where["forward"] == 11
    words = bound_by(where, baseline.Recipe(), "cpu")
    assert words.startswith("outputs of frozen layers, 52%") and "in the cache now" in words
    for name in where:
        assert "what would help: " in bound_by({name: 1.0}, baseline.Recipe(), "cuda")
