"""Recipes: the folder is the list, every fault is named, and the rules behind "auto" are what they say."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from conftest import shortened

from baseline import (
    Progress,
    Recipe,
    Stage,
    dataloaders,
    image_table,
    learner,
    load_images,
    load_recipe,
    make_baseline,
    resolve,
    split,
    train,
)
from baseline.data.sources.datasets import DATASETS
from baseline.data.sources.external import is_external
from baseline.errors import RecipeError
from baseline.recipe.auto import (
    EMBEDDED_ARCH,
    resolve_arch,
    resolve_batch_size,
    resolve_epochs,
    resolve_frozen_precision,
    resolve_precision,
    resolve_preset,
)
from baseline.recipe.load import recipe_from_dict, recipe_names, recipes_folder
from baseline.recipe.schema import HEAD_STAGE
from baseline.system import is_intel_cpu


def test_every_recipe_file_loads_and_every_name_has_a_file() -> None:
    files = sorted(recipes_folder().glob("*.toml"))
    assert recipe_names() == [file.stem for file in files]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.title
        assert not recipe.data.dataset or recipe.data.dataset in DATASETS or is_external(recipe.data.dataset)
        for preset in ("standard", *recipe.presets):
            assert recipe.with_preset(preset).presets == {}


def test_the_recipes_folder_holds_no_python() -> None:
    assert not list(recipes_folder().rglob("*.py"))


def test_an_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'cifra10'\. Did you mean 'cifar10'\?"):
        load_recipe("cifra10")


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'imagesize = 128\nbatch_size = 1\nresize = "stretch"\n'
        '[[stage]]\ntrains = "body"\nepochs = 0\nlr = [1e-6]\n[[stage]]\nepoch = 3\n'
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = str(caught.value)
    for fault in (
        "imagesize",
        "'image_size'",
        "batch_size is 1",
        "'stretch'",
        "'body'",
        "epochs is 0",
        "lr is",
        "stage 2",
    ):
        assert fault in message
    assert "\n" not in message


def test_a_fault_inside_a_preset_is_found_when_the_recipe_is_read() -> None:
    stage = [{"trains": "head", "epochs": 1}]
    with pytest.raises(RecipeError, match="image_sise"):
        recipe_from_dict({"stage": stage, "preset": {"quick": {"image_sise": 64}}}, "mine")
    with pytest.raises(RecipeError, match="image_size is 2"):
        recipe_from_dict({"stage": stage, "preset": {"quick": {"image_size": 2}}}, "mine")


@pytest.mark.parametrize("text", ["image_size = ", "[[stage]\n", "\x00"])
def test_a_file_that_is_no_toml_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", "128"), ("image_size", True), ("valid_fraction", 0), ("tta", ("rotate",)), ("augment", {"spin": 3}),
     ("seed", -1), ("freeze", "yes"), ("stages", ()), ("precision", "int8"), ("pretrained", 1), ("workers", 1.5),
     ("budget", "soon"), ("budget", 600), ("budget", "0m"), ("cache_gb", -1)],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=field):
        Recipe().changed(**{field: value})


def test_an_unknown_change_is_answered_with_the_nearest_field() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'image_size'"):
        Recipe().changed(imagesize=3)


def test_a_preset_changes_only_what_it_names() -> None:
    recipe = load_recipe("cifar10")
    quick = recipe.with_preset("quick")
    assert quick.preset == "quick" and quick.data.dataset == "cifar10" and quick.stages != recipe.stages
    assert recipe.with_preset("standard").stages == recipe.stages


def test_a_recipe_survives_the_way_through_json() -> None:
    recipe = load_recipe("cifar10").with_preset("quick").changed(batch_size=7)
    assert recipe_from_dict(json.loads(json.dumps(recipe.as_dict())), "other") == recipe


def test_rates_may_be_a_pair_or_a_number_or_found() -> None:
    for lr in ("find", 1e-3, (1e-6, 1e-4)):
        assert Recipe().changed(stages=(Stage("all", 1, lr),)).stages[0].lr == lr


def test_a_recorded_recipe_has_the_preset_that_it_was_recorded_with() -> None:
    quick = load_recipe("cifar10").with_preset("quick")
    assert quick.with_preset("quick") == quick
    assert quick.with_preset("instant").stages == (Stage("probe", 1),)
    with pytest.raises(RecipeError, match=r"has no preset 'standard'\. Known: instant, quick\."):
        quick.with_preset("standard")


def test_the_preset_follows_the_device() -> None:
    assert resolve_preset("cpu")[0] == "quick"
    assert resolve_preset("cuda")[0] == "standard"


def test_the_architecture_follows_device_and_reach() -> None:
    assert resolve_arch("auto", "cpu", lambda _: True)[0] == "tf_efficientnet_lite0"
    assert resolve_arch("auto", "cuda", lambda _: True)[0] == "convnext_nano.in12k_ft_in1k"
    assert resolve_arch("auto", "cuda", lambda name: name == "resnet50")[0] == "resnet50"
    assert resolve_arch("auto", "cuda", lambda _: False)[0] == "tf_efficientnet_lite0"


def test_without_pretrained_weights_a_gpu_gets_resnet50(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baseline.vision.resolve.device_type", lambda: "cuda")
    recipe = load_recipe("default").changed(image_size=48, pretrained=False)
    resolved, weights, _ = resolve(recipe, split(image_table(images), recipe))
    assert resolved.model.arch == "resnet50" and weights is None


def test_of_several_architectures_the_first_within_reach_is_taken_and_the_reason_told() -> None:
    wish = "resnet18 or mobilenet_v2 or auto"
    assert resolve_arch(wish, "cpu", lambda _: True)[0] == "resnet18"
    found, why = resolve_arch(wish, "cpu", lambda name: name == "mobilenet_v2")
    assert found == "mobilenet_v2" and why == f"the first of '{wish}' whose weights are available"
    found, why = resolve_arch(wish, "cpu", lambda _: False)
    assert found == "tf_efficientnet_lite0"
    assert why.startswith(
        "the weights of resnet18 are not available; the weights of mobilenet_v2 are not available; no GPU"
    )
    assert resolve_arch("resnet18", "cpu", lambda _: False) == ("resnet18", "as given"), "an error later, in words"


@pytest.mark.parametrize("images", [2, 3, 15, 16, 17, 100, 255, 256, 5_000, 10**6])
@pytest.mark.parametrize("asked", ["auto", 2, 64, 72])
def test_a_batch_is_never_larger_than_the_images(images: int, asked: str | int) -> None:
    size, why = resolve_batch_size(asked, images, "cpu")
    assert 2 <= size <= images and why


@pytest.mark.parametrize("images", [16, 82, 220, 2250, 45_000])
def test_few_images_get_the_steps_they_need_and_many_the_epochs_asked_for(images: int) -> None:
    batch = int(resolve_batch_size("auto", images, "cpu")[0])
    probe, *stages = load_recipe("default").stages
    assert probe.trains == "probe" and HEAD_STAGE.epochs_of(images, batch) * (images // batch) >= HEAD_STAGE.steps > 0
    settled, why = resolve_epochs((probe, *stages), images, batch)
    assert settled[0] == probe
    for asked, stage in zip(stages, settled[1:], strict=True):
        assert stage.epochs * (images // batch) >= stage.steps > 0 and stage.epochs >= asked.epochs
        assert stage.epochs == asked.epochs or (stage.epochs - 1) * (images // batch) < stage.steps
    assert bool(why) == (settled[1:] != tuple(stages)) == (images < 2250)
    assert resolve_epochs(settled, images, batch) == (settled, "")


def test_a_share_of_the_layer_groups_is_above_0_and_below_1() -> None:
    assert Stage(0.01, 1).groups(9) == 2 and Stage(0.99, 1).groups(3) == 3 and Stage(4, 1).groups(9) == 4
    for share in (0.0, 1.0, 1.5, -0.5):
        with pytest.raises(RecipeError, match="or a fraction of them"):
            Recipe().changed(stages=(Stage(share, 1),))


def test_a_stage_is_no_larger_than_the_recipe() -> None:
    with pytest.raises(
        RecipeError, match="stage 1: image_size is 200, needed: pixels, from 8 to the recipe's image_size 160"
    ):
        Recipe().changed(stages=(Stage("head", 1, image_size=200),))


def test_an_optimizer_and_a_schedule_that_are_not_there_are_refused_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[stage]]\ntrains = "head"\nepochs = 1\noptimizer = "sdg"\nschedule = "onecycle"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert "stage 1: optimizer is 'sdg', needed: one of adam, sgd" in str(caught.value)
    assert "schedule is 'onecycle', needed: one of one_cycle, flat_cos, plateau, constant" in str(caught.value)
    with pytest.raises(RecipeError, match="optimizer is 3"):
        Recipe().changed(stages=(Stage("head", 1, optimizer=3),))  # type: ignore[arg-type]


def test_bfloat16_is_used_where_it_is_faster() -> None:
    amx, avx = "AMX", "AVX-512 BF16"
    assert resolve_frozen_precision("auto", "cpu", [amx, avx], is_intel=True)[0] == "bfloat16"
    assert resolve_frozen_precision("auto", "cpu", [avx], is_intel=False)[0] == "bfloat16"
    assert resolve_frozen_precision("auto", "cpu", [avx], is_intel=True)[0] == "float32"
    assert resolve_frozen_precision("bfloat16", "cpu", [avx], is_intel=True) == ("bfloat16", "as given")
    assert resolve_frozen_precision("float32", "cpu", [amx], is_intel=True) == ("float32", "as given")
    assert resolve_frozen_precision("auto", "cpu", [], is_intel=True)[0] == "float32"
    assert resolve_frozen_precision("auto", "cuda", [amx], is_intel=True)[0] == "float32"
    with pytest.raises(RecipeError, match="this one has neither"):
        resolve_frozen_precision("bfloat16", "cpu", [], is_intel=False)


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "is_intel"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16\n", "", True),
        ("vendor_id\t: AuthenticAMD\nmodel name\t: not GenuineIntel\n", "x86_64", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "", False),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", True),
        (None, "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", False),
    ],
)
def test_the_vendor_of_the_cpu_is_recognized(
    cpuinfo: str | None, processor: str, is_intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, **_: object) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert is_intel_cpu() is is_intel


def test_sixteen_bit_formats_are_refused_on_a_cpu() -> None:
    with pytest.raises(RecipeError, match="needs a GPU"):
        resolve_precision("bfloat16", "cpu")
    assert resolve_precision("auto", "cuda")[0] == "float16"


# ---- each recipe, run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_trains(name: str, rubbish: Path, grouped: Path, body: dict[str, str], tmp_path: Path) -> None:
    changes = {**shortened(name), **body}
    recipe = load_recipe(name).with_preset(changes.pop("preset")).changed(**changes)
    table = split(
        image_table(grouped if recipe.split.method == "group" else rubbish, positive=recipe.data.positive), recipe
    )
    recipe, weights, _ = resolve(recipe, table)
    learn = learner(dataloaders(table, recipe, path=tmp_path), recipe, weights=weights, path=tmp_path)
    history = train(learn, recipe)
    assert [stage["optimizer"] for stage in history.stages] == [stage.optimizer for stage in recipe.stages]
    assert len(history.epochs) == len(recipe.stages) and history.epochs["train_loss"].notna().all()


def test_skylines_keeps_groups_together_and_says_how_it_was_trained(
    grouped: Path, body: dict[str, str], tmp_path: Path
) -> None:
    done = make_baseline(
        grouped, "skylines", out=tmp_path / "run", progress=Progress(), **{**shortened("skylines"), **body}
    )
    parts = pd.read_csv(tmp_path / "run" / "split.csv")
    assert (parts.groupby("group")["split"].nunique() == 1).all() and parts["group"].nunique() == 16
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())
    for stage in (kept["stages"][1], kept["recipe"]["stages"][1]):
        assert (stage["optimizer"], stage["schedule"]) == ("sgd", "plateau")
    assert done.recipe == recipe_from_dict(kept["recipe"])
    for file in ("model/README.md", "report.html"):
        assert (tmp_path / "run" / file).read_text().count("optimizer sgd, schedule plateau") == 1


def test_debris_tells_plastic_from_the_rest_and_can_be_run_again(
    rubbish: Path, body: dict[str, str], no_page: None, tmp_path: Path
) -> None:
    done = make_baseline(
        rubbish, "debris", out=tmp_path / "run", progress=Progress(), **{**shortened("debris"), **body}
    )
    assert list(done.learner.dls.vocab) == ["not plastic", "plastic"]
    counts = pd.read_csv(tmp_path / "run" / "split.csv")["label"].value_counts()
    assert counts.to_dict() == {"not plastic": 32, "plastic": 16}
    assert list(
        load_images(None, tmp_path / "run" / "manifest.json", progress=Progress())[1]["label"].unique()
    ) == list(counts.index)
    every = load_images(rubbish, "debris", progress=Progress(), positive="")[1]
    assert sorted(every["label"].unique()) == ["glass", "paper", "plastic"]


def test_a_recipes_body_is_the_one_whose_weights_are_at_hand_and_the_choice_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("BASELINE_KAGGLE", str(tmp_path / "kaggle"))
    recipe = load_recipe("alpaca").changed(image_size=48)
    table = split(image_table(images), recipe)
    found, weights, reasons = resolve(recipe, table)
    assert found.model.arch == weights.arch == EMBEDDED_ARCH
    assert reasons["arch"].startswith("the weights of mobilenet_v2 are not available; ")
    (tmp_path / "kaggle/input/weights").mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "kaggle/input/weights/mobilenet_v2.pth")
    found, weights, reasons = resolve(recipe, table)
    assert found.model.arch == weights.arch == "mobilenet_v2" and "are available" in reasons["arch"]
    assert resolve(recipe.changed(pretrained=False, arch="resnet18 or auto"), table)[0].model.arch == "resnet18"
    mine = recipe.changed(arch="resnet18 or auto", weights=str(tmp_path / "kaggle/input/weights/mobilenet_v2.pth"))
    assert resolve(mine, table)[0].model.arch == "resnet18", (
        "a file of weights is for the body that the recipe names first"
    )
    with pytest.raises(RecipeError, match="no architecture 'resnet81'"):
        resolve(recipe.changed(arch="resnet81 or auto"), table)


def test_a_preset_with_smaller_images_takes_larger_ones_where_there_are_few() -> None:
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(5004)], "label": ["a", "b"] * 2502, "split": "train"})
    table.loc[:1, "split"] = "valid"
    quick = load_recipe("cifar10").changed(arch="test_efficientnet", pretrained=False).with_preset("quick")
    assert (quick.model.image_size, quick.model.small_set_size) == (80, 128)

    def size(recipe: Recipe, images: int) -> tuple[int, str]:
        resolved, _, reasons = resolve(recipe, table.head(images + 2))
        assert resolved.model.small_set_size == 0  # settled: fewer images later do not change it again
        return resolved.model.image_size, reasons.get("image_size", "")

    assert size(quick, 5000) == (128, "5,000 training images are few: 80 would save little time")
    assert size(quick, 5001) == (80, "") and size(quick.changed(budget="1m"), 100)[0] == 80
    assert size(quick.changed(image_size=96), 100) == (96, "")
    assert size(quick.changed(small_set_size=0), 100)[0] == 80
    own = Recipe(presets={"quick": {"image_size": 64}}).changed(arch="test_efficientnet", pretrained=False)
    assert size(own.changed(image_size=96).with_preset("quick"), 100)[0] == 96  # never above the recipe's own size
    assert load_recipe("default").with_preset("quick").model.small_set_size == 0  # 128 already
