"""Tests architectures of all families at several image sizes; writes a table with one row per architecture.

    python benchmarks/architectures.py hymenoptera_256/train benchmarks/architectures.md

Each architecture is built with random weights at 96, 160 and 224 pixels and at its own size, trained for three stages
of two steps (head, 55% of the layer groups, all), saved and loaded, and its predictions are compared. Unsupported
sizes are rounded to the nearest supported one. Names of architectures after the two paths limit the run to these.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

import baseline
from baseline.deploy.export import export
from baseline.errors import BaselineError, first_line
from baseline.evaluation.gradcam import grad_cam
from baseline.recipe.schema import Augment, Stage
from baseline.runs.manifest import describe_device
from baseline.runs.writing import write_training
from baseline.training.frozen import FrozenOutputs
from baseline.vision.layers import find_layers
from baseline.vision.model_folder import load_network
from baseline.vision.network import features_of
from baseline.vision.rng import seed_everything
from baseline.vision.sizes import own_size

SIZES = (96, 160, 224)

ONNX = (
    "tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto",
    "mobilenetv3_small_050", "poolformer_s12", "eva02_tiny_patch14_224", "levit_128s", "mobilenetv4_conv_small_035",
)  # fmt: skip
"""Architectures that are also exported to ONNX, at the first size."""

ARCHS = (
    *(
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "mobilenetv3_small_050",
        "poolformer_s12",
    ),
    *("eva02_tiny_patch14_224", "levit_128s", "tf_efficientnet_lite0", "resnet18", "mobilenetv4_conv_small_035"),
    *(
        "maxvit_rmlp_pico_rw_256",
        "coatnet_pico_rw_224",
        "convnextv2_atto",
        "vit_b_16",
        "deit_tiny_distilled_patch16_224",
    ),
    *("efficientformerv2_s0", "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "ghostnet_050", "tinynet_e"),
    *("mnasnet_small", "regnet_y_400mf", "squeezenet1_1", "mobilenet_v2", "regnetx_002", "inception_next_atto"),
    *("mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224", "xcit_nano_12_p16_224", "pit_ti_224"),
    *("starnet_s1", "tiny_vit_5m_224", "pvt_v2_b0", "crossvit_9_240", "convit_tiny", "hgnetv2_b0", "rexnet_100"),
    *("repvit_m0_9", "efficientvit_b0", "efficientvit_m0", "mambaout_femto", "shvit_s1", "fasternet_t0", "lcnet_050"),
    *("repvgg_a0", "mixnet_s", "dla34", "resnet18.a1_in1k", "resnext26ts", "tf_efficientnetv2_b0", "cait_xxs24_224"),
    *("swinv2_cr_tiny_224", "densenet121", "visformer_tiny", "ese_vovnet19b_dw", "hrnet_w18_small", "davit_tiny"),
    *("res2net50_14w_8s", "hiera_tiny_224", "focalnet_tiny_srf", "nextvit_small", "rdnet_tiny", "nest_tiny"),
    *("volo_d1_224", "twins_svt_small", "vitamin_small_224", "tnt_s_patch16_224", "coat_tiny", "legacy_xception"),
    *("vit_small_patch16_dinov3", "swinv2_tiny_window8_256", "gcvit_xxtiny", "mvitv2_tiny", "halonet26t", "fastvit_t8"),
)


HEADER = """# Architectures

`python benchmarks/architectures.py IMAGES benchmarks/architectures.md`, {device}, torch {torch}, timm {timm},
{date}: {count} architectures in {minutes:.0f} minutes, with other work on the machine. Weights are random.

"ok" means: built, every parameter in one layer group, three stages of two steps trained (head, 55% of the groups,
all), saved and loaded, and the loaded network's probabilities differ by less than 1e-4. An arrow gives the nearest size
that the architecture accepts. "Cached" are the stages whose frozen layers are computed once. Grad-CAM gives the size of
the heatmap at the last image size, and ONNX the largest difference of a probability at 96 px.

| architecture | size | features | groups | layers | 96 px | 160 px | 224 px | own | cached | Grad-CAM | ONNX |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def main(images: str, target: str, *archs: str) -> None:
    table = baseline.image_table(images)
    table = table.groupby("label").head(3).reset_index(drop=True)
    table["split"] = ["valid" if number % 3 == 0 else "train" for number in range(len(table))]
    started, lines = time.perf_counter(), []
    for arch in archs or ARCHS:
        lines.append(describe(arch, table))
        seconds = time.perf_counter() - started
        print(lines[-1], f"{seconds:.0f} s in total", flush=True)
        text = HEADER.format(
            device=describe_device(), torch=torch.__version__.split("+")[0],
            timm=timm.__version__, date=f"{date.today():%d %B %Y}", count=len(lines), minutes=seconds / 60,
        )  # fmt: skip
        Path(target).write_text(text + "\n".join(lines) + "\n")


def describe(arch: str, table: Any) -> str:
    """Return the architecture's row of the table."""
    details: dict[str, Any] = {}
    cells = []
    try:
        own = own_size(arch)
        for size in dict.fromkeys((*SIZES, own)):
            cells.append(check(arch, size, table, details, with_onnx=arch in ONNX and size == SIZES[0]))
    except BaselineError as error:
        return f"| {arch} | {first_line(error)} |"
    columns = ("parameters", "features", "groups", "layers", "cached", "cam", "onnx")
    parameters, features, groups, layers, *others = (details.get(name, "") for name in columns)
    cells = [*cells[:3], f"{own}: {cells[3] if len(cells) > 3 else cells[SIZES.index(own)]}"]
    values = [parameters, features, groups, layers, *cells, *others]
    return f"| {arch} | {' | '.join(map(str, values))} |"


def check(arch: str, size: int, table: Any, details: dict[str, Any], *, with_onnx: bool) -> str:
    """Train, save and load the architecture at a size; return `"ok"`, the size that was used instead, or the error."""
    stages = (Stage("head", 1, 1e-3), Stage(0.55, 1, (1e-5, 1e-4)), Stage("all", 1, (1e-5, 1e-4)))
    recipe = baseline.load_recipe("default").changed(
        arch=arch, pretrained=False, image_size=size, stages=stages, batch_size=2, cache_gb=0, presets={}, patience=0,
        augment=Augment(flip=False, rotate=0, zoom=1, lighting=0, warp=0), tta=(),
    )  # fmt: skip
    resolved = baseline.resolve(recipe, table)[0].changed(stages=stages)
    rounded = "" if resolved.model.image_size == size else f"→ {resolved.model.image_size}, "
    with tempfile.TemporaryDirectory() as folder, seed_everything(0):
        try:
            learn = baseline.learner(baseline.dataloaders(table, resolved, path=folder), resolved, path=folder)
            groups = learn.splitter(learn.model)
            assert sorted(id(p) for group in groups for p in group) == sorted(map(id, learn.model.parameters()))
            details["parameters"] = f"{sum(p.numel() for p in learn.model.parameters()) / 1e6:.1f} M"
            details["features"], details["groups"] = features_of(learn.model[0]), len(groups)
            details["layers"] = len(find_layers(learn.model, resolved.model.image_size))
            plan = FrozenOutputs(learn, resolved).plan
            details["cached"] = " and ".join({1: "head", 2: "55%"}[number] for number in plan.stages if number < 3)
            history = baseline.train(learn, resolved, baseline.Progress())
            assert len(history.epochs) == 3 and history.epochs["train_loss"].notna().all(), "a loss is not finite"
            write_training(Path(folder), learn, history, resolved, None)
            loaded, _ = load_network(folder)
            images = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor).contiguous()
            with torch.no_grad():
                outputs = torch.stack([loaded.to(images.device)(images), learn.model(images)]).softmax(-1)
            difference = float((outputs[0] - outputs[1]).abs().max())
            assert difference < 1e-4, f"probabilities differ by {difference:.1e} after loading"
            heatmaps = grad_cam(learn.model, images[:2], [0, 1])
            details["cam"] = "not available" if heatmaps is None else "x".join(map(str, heatmaps.shape[1:]))
            if with_onnx:
                exported = export(folder, "onnx", Path(folder) / "model.onnx", progress=baseline.Progress())
                details["onnx"] = f"{exported.max_difference:.0e}"
        except Exception as error:
            return f"{rounded}{type(error).__name__}: {first_line(error)[:90]}"
    return f"{rounded}ok"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
