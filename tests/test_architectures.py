"""Bodies of every family: at any size they accept, cut before their logits, split into blocks, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

import baseline
from baseline import Stage, train
from baseline.errors import RecipeError, WeightsError
from baseline.evaluation.gradcam import grad_cam
from baseline.training.frozen import FrozenOutputs
from baseline.vision.layers import find_layers
from baseline.vision.model_folder import load_network, save_network
from baseline.vision.network import build_network, features_of
from baseline.vision.resolve import resolve_image_sizes
from baseline.vision.sizes import nearest_size, size_problem
from baseline.vision.weights import find_weights

FAMILIES = {
    "test_efficientnet": (64, "maps"), "test_resnet": (64, "maps"), "test_byobnet": (64, "maps"),
    "test_convnext": (64, "pooled"), "mobilenetv3_small_050": (64, "pooled"), "poolformer_s12": (64, "pooled"),
    "mobilenetv4_conv_small_035": (64, "pooled"), "maxvit_rmlp_pico_rw_256": (64, "maps"), "levit_128s": (64, "pooled"),
    "test_vit": (96, "pooled"), "eva02_tiny_patch14_224": (56, "pooled"), "mambaout_femto": (64, "pooled"),
    "swin_tiny_patch4_window7_224": (64, "pooled"), "efficientformerv2_s0": (64, "pooled"),
}  # fmt: skip
"""For a small member of each family: an image size other than its own, and what its body hands to the head."""


def build(arch: str, size: int) -> Any:
    torch.manual_seed(0)
    model, splitter = build_network(arch, 3, None, image_size=size)
    return model.eval(), splitter, torch.rand(2, 3, size, size)


LARGE = ("poolformer_s12", "maxvit_rmlp_pico_rw_256", "mambaout_femto", "swin_tiny_patch4_window7_224")


def marked(*archs: str) -> list[Any]:
    """The architectures, with the large ones among the slow tests."""
    return [pytest.param(arch, marks=[pytest.mark.slow] if arch in LARGE else []) for arch in archs]


@pytest.mark.parametrize("arch", marked(*FAMILIES))
@torch.no_grad()
def test_a_body_ends_where_timms_logits_begin_and_is_a_chain_of_blocks(arch: str) -> None:
    size, features = FAMILIES[arch]
    model, splitter, images = build(arch, size)
    own: Any = model[0].model
    pooled = nn.Sequential(model[0], *(model[1][:2] if features == "maps" else []))(images)
    assert features_of(model[0]) == features
    assert torch.allclose(pooled, own.forward_head(own.forward_features(images), pre_logits=True), atol=1e-5)
    groups, layers = splitter(model), find_layers(model, size)
    assert sorted(id(p) for group in groups for p in group) == sorted(map(id, model.parameters()))
    assert len(layers) > 8 and len(groups) >= 5
    assert {id(p) for layer in layers for p in layer.parameters()} == set(map(id, model.parameters()))
    assert torch.equal(nn.Sequential(*layers)(images), model(images))
    trained = {id(p) for group in groups[-Stage(0.55, 1).groups(len(groups)) :] for p in group}
    first = next(n for n, layer in enumerate(layers) if any(id(p) in trained for p in layer.parameters()))
    assert first > 0, "a stage that trains 55% of the groups has frozen layers before them"


@pytest.mark.parametrize("arch", ["repvgg_a0", "fastvit_t8"])
def test_a_strided_pointwise_convolution_trains_on_a_cpu(arch: str) -> None:
    """Seen to kill the process, with channels stored last."""
    model, _, images = build(arch, 64)
    plain = timm.create_model(arch, num_classes=0).eval()
    plain.load_state_dict(model[0].model.state_dict())
    gradients = []
    for network, layout in ((model[0].model, torch.channels_last), (plain, torch.contiguous_format)):
        network.forward_features(images.contiguous(memory_format=layout)).square().mean().backward()
        gradients.append(next(p.grad for n, p in network.named_parameters() if p.shape[1:] == (3, 1, 1)))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


def test_a_network_whose_modules_share_weights_is_saved_and_loaded(tmp_path: Path) -> None:
    facts = {"library": "timm", "arch": "coat_tiny", "head": "linear", "classes": list("abc"), "image_size": 64,
             "resize": "squish", "mean": (0.5,) * 3, "std": (0.5,) * 3, "task": "single"}  # fmt: skip
    model, _, images = build("coat_tiny", 64)
    save_network(model, {**facts, "features": features_of(model[0])}, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)[0](images), model(images))


def test_a_body_whose_modules_collect_a_list_is_a_chain_of_its_blocks() -> None:
    model, _, images = build("ese_vovnet19b_dw", 64)
    layers = find_layers(model, 64)
    with torch.no_grad():
        assert len(layers) > 8 and torch.equal(nn.Sequential(*layers)(images), model(images))


@pytest.mark.parametrize(
    "arch", marked("test_vit", "test_convnext", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224")
)
def test_grad_cam_takes_the_tokens_of_a_transformer_as_its_map(arch: str) -> None:
    size = FAMILIES[arch][0]
    model, _, images = build(arch, size)
    with torch.no_grad():
        images[1, :, : size // 2] = 0
    heatmaps = grad_cam(model, images, [0, 1])
    side = {"test_vit": 6, "eva02_tiny_patch14_224": 4}.get(arch, 2)
    assert heatmaps is not None and heatmaps.shape == (2, side, side)
    assert np.isfinite(heatmaps).all() and heatmaps.min() >= 0 and heatmaps.max() == pytest.approx(1)
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_of_a_class_token_equals_the_formula_on_the_last_blocks_input() -> None:
    model, _, images = build("test_vit", 96)
    vit: Any = model[0].model
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
        for block in vit.blocks[:-1]:
            tokens = block(tokens)
    tokens.requires_grad_(True)
    outputs = model[1](vit.forward_head(vit.norm(vit.blocks[-1](tokens))))
    (slopes,) = torch.autograd.grad(outputs[:, 2].sum(), tokens)
    expected = (slopes[:, 1:].mean(1, keepdim=True) * tokens[:, 1:]).sum(2).relu().detach().view(2, 6, 6)
    expected /= expected.amax((1, 2), keepdim=True)
    assert np.allclose(grad_cam(model, images, [2, 2]), expected, atol=1e-5)


def test_grad_cam_is_not_available_without_a_map() -> None:
    model, _, images = build("pit_ti_224", 96)  # returns its class token alone
    assert grad_cam(model, images, [0, 1]) is None


@pytest.mark.parametrize(
    ("arch", "asked", "pretrained", "size"),
    [("test_vit", 100, False, 96), ("test_vit", 109, True, 112), ("maxvit_rmlp_pico_rw_256", 100, False, 96),
     ("eva02_tiny_patch14_224", 160, True, 154), ("mixer_s32_224", 160, True, 224), ("mixer_s32_224", 160, False, 160),
     ("resnet18", 101, True, 101), ("dla34", 100, False, 96), ("squeezenet1_1", 8, False, 17)],
)  # fmt: skip
def test_sizes_that_a_body_does_not_accept_become_the_nearest(
    arch: str, asked: int, pretrained: bool, size: int
) -> None:
    assert nearest_size(arch, asked, pretrained=pretrained) == size
    assert bool(size_problem(arch, asked, pretrained=pretrained)) == (size != asked)
    assert not size_problem(arch, size, pretrained=pretrained)


def test_a_settled_size_is_reported_and_recorded(
    images: Path, small: baseline.Recipe, no_page: None, tmp_path: Path
) -> None:
    lines: list[str] = []
    progress = baseline.Progress()
    progress.log = lines.append  # type: ignore[method-assign]
    stages = (Stage("head", 1, 1e-3, image_size=60), Stage(0.55, 1, 1e-4))
    recipe = small.changed(arch="test_vit", pretrained=False, image_size=100, stages=stages)
    table = baseline.split(baseline.image_table(images), recipe)
    reasons = baseline.resolve(recipe, table, progress)[2]
    assert reasons["image_size"].startswith(
        "test_vit: not 100: Input height (100) should be divisible by patch size (16)"
    )
    assert f"image_size: 96 ({reasons['image_size']})" in lines
    resolved, reason = resolve_image_sizes(recipe)
    assert resolved.model.image_size == 96 and "stage 1: 64, not 60: " in reason and resolved.stages[0].image_size == 64
    done = baseline.make_baseline(
        images, recipe.changed(stages=(Stage(0.55, 1, 1e-4),)), out=tmp_path / "run", progress=baseline.Progress(),
        pretrained=False,
    )  # fmt: skip
    assert done.manifest["recipe"]["stages"][0]["trains"] == "all", "random weights are trained as a whole"
    config = json.loads((tmp_path / "run/model/model.json").read_text())
    assert done.recipe.model.image_size == config["image_size"] == 96 and config["features"] == "pooled"
    assert "patch size (16)" in done.manifest["reasons"]["image_size"]
    assert done.model.check() < 1e-5
    before = done.predictions.query("split == 'valid'").set_index("path")["confidence"]
    after = done.predict(list(before.index), calibrated=False).set_index("path")["confidence"]
    assert len(before) and np.allclose(before, after[before.index], atol=1e-4)


def test_a_size_that_does_not_fit_is_an_error_without_resolve() -> None:
    with pytest.raises(
        RecipeError, match=r"vit_tiny\S+ does not accept images of 100 pixels: a multiple of 16.*size 96"
    ):
        build_network("vit_tiny_patch16_224", 2, None, image_size=100)


def test_features_that_cannot_be_pooled_are_refused() -> None:
    class Tokens(timm.create_model("test_vit").__class__):  # type: ignore[misc]
        def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return tokens

    def unpooled_vit(pretrained: bool = False, **options: Any) -> Tokens:
        model = Tokens(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=1, num_classes=0)
        model.default_cfg = {"input_size": (3, 32, 32)}
        return model

    unpooled_vit.__module__ = "timm.models.vision_transformer"
    timm.models.register_model(unpooled_vit)
    with pytest.raises(RecipeError, match=r"'unpooled_vit' cannot be pooled: .*\(2, 5, 8\), and one vector per image"):
        nearest_size("unpooled_vit", 32)


def save_timm_weights(arch: str, folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = timm.create_model(arch)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(model.state_dict(), folder / "own.pth")
    return model, find_weights(arch, folder / "own.pth")


def test_timm_resamples_position_embeddings_and_window_tables(tmp_path: Path) -> None:
    own, weights = save_timm_weights("vit_tiny_patch16_224", tmp_path)
    vit: Any = build_network(weights.arch, 2, weights, image_size=96)[0][0].model
    assert vit.pos_embed.shape == (1, 37, 192)
    assert torch.equal(vit.pos_embed, resample_abs_pos_embed(own.pos_embed, [6, 6], num_prefix_tokens=1))
    assert torch.equal(vit.blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv.weight)
    own, weights = save_timm_weights("swin_tiny_patch4_window7_224", tmp_path)
    swin: Any = build_network(weights.arch, 2, weights, image_size=96)[0][0].model
    tables = [m.layers[3].blocks[0].attn.relative_position_bias_table for m in (own, swin)]
    assert [len(table) for table in tables] == [169, 25] and tables[1].std() > 0.01, "windows of 7 and of 3 patches"


def test_weights_that_cannot_be_resampled_are_refused(tmp_path: Path) -> None:
    _, weights = save_timm_weights("gmixer_12_224", tmp_path)
    with pytest.raises(WeightsError, match=r"does not hold weights of gmixer_12_224"):
        build_network("gmixer_12_224", 2, weights, image_size=160)


def test_a_folder_from_before_is_cut_as_it_was(tmp_path: Path) -> None:
    facts = {"arch": "test_convnext", "head": "linear", "classes": ["a", "b", "c"], "image_size": 64, "resize": "pad",
             "mean": (0.5,) * 3, "std": (0.5,) * 3, "task": "single"}  # fmt: skip
    model, _ = build_network("test_convnext", 3, None, features="fastai")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model[0].model.head.norm.weight.fill_(3)
        save_network(model.eval(), facts, tmp_path)
        loaded, config = load_network(tmp_path)
        assert config["features"] == "fastai" and torch.equal(loaded(images), model(images))
        expected = model[1](model[0].model.forward_features(images))
        assert torch.equal(loaded(images), expected), "the norm of timm's head was left out"
        learner = baseline.load(tmp_path).learner  # type: ignore[union-attr]
        assert torch.equal(learner.model.cpu()(images), expected)


@pytest.mark.parametrize("arch", marked("test_vit", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"))
def test_the_layers_after_cached_blocks_predict_what_the_network_predicts(
    arch: str, settled: tuple, tmp_path: Path
) -> None:
    recipe = settled[0].changed(
        arch=arch, image_size=FAMILIES[arch][0], pretrained=False, augment={"flip": False, "rotate": 0, "zoom": 1,
        "lighting": 0, "warp": 0}, cache_gb=0, frozen_precision="float32", stages=(Stage(0.55, 1, 1e-4),),
    )  # fmt: skip
    learn = baseline.learner(baseline.dataloaders(settled[1], recipe, path=tmp_path), recipe)
    stage = FrozenOutputs(learn, recipe).learner(1)
    assert stage is not None and 3 < len(stage.model) < len(find_layers(learn.model, recipe.model.image_size)) - 3
    (cached, _), (inputs, _) = stage.dls.valid.one_batch(), learn.dls.valid.one_batch()
    with torch.no_grad():
        outputs, expected = stage.model.eval()(cached), learn.model(inputs)
    assert torch.allclose(outputs, expected, atol=2e-2 * float(expected.abs().max())), (outputs - expected).abs().max()
    assert len(train(learn, recipe).epochs) == 1


def test_a_stage_on_smaller_images_trains_a_transformer(settled: tuple, tmp_path: Path) -> None:
    stages = (Stage("head", 1, 1e-3, image_size=64), Stage("all", 1, 1e-4))
    recipe = settled[0].changed(arch="test_vit", image_size=96, pretrained=False, stages=stages)
    resolved = baseline.resolve(recipe, settled[1])[0].changed(stages=stages)
    learn = baseline.learner(baseline.dataloaders(settled[1], resolved, path=tmp_path), resolved)
    assert len(train(learn, resolved).epochs) == 2
