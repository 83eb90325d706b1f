"""What `baseline run --dry-run` prints: how the images would be read, and what would be downloaded; nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from baseline.cli.json_output import print_object
from baseline.cli.options import collect_garbage_less_often, without_device
from baseline.cli.output import print_text

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe


def print_images(images: str | None, recipe: str | Recipe, changes: dict[str, Any], as_json: bool) -> None:
    """Print how the images would be read, line by line, or as JSON."""
    collect_garbage_less_often()
    from baseline.recipe.choose import apply_changes, choose_recipe

    changes = without_device(images, recipe, changes)
    chosen, place = choose_recipe(images, recipe)
    resolved, reasons = apply_changes(chosen, None, dict(changes))
    lines = describe_missing_images(place) or describe_reading(images, place, resolved, reasons)
    lines += describe_missing_weights(resolved)
    if as_json:
        print_object("run", {"kind": "dry-run", "lines": lines})
    else:
        print_text("\n".join(lines))


def describe_reading(images: str | None, place: Any, recipe: Recipe, reasons: dict[str, str]) -> list[str]:
    """Return what was read of the images, line by line.

    Args:
        images: as given, `place` is where they are; see `choose_recipe`.
        reasons: of what was chosen in the recipe; see `apply_changes`.
    """
    from baseline.data.labels import classes_in
    from baseline.data.prepare import load_image_table, metric_notes
    from baseline.data.table import summarize_source
    from baseline.data.table_folds import describe_probe_folds
    from baseline.progress import Progress

    resolved, table = load_image_table(place, recipe, reasons, Progress())
    lines = [*summarize_source(table), *metric_notes(images, resolved, classes_in(table, resolved.data.task))]
    lines += filter(None, [describe_probe_folds(resolved, len(table), reasons["split"])])
    if "kfold" not in resolved.split.method:
        return lines
    from baseline.experiments.repeats import describe_folds

    return [*lines, describe_folds(table, resolved)]


def describe_missing_images(place: Any) -> list[str]:
    """Return a line that says where the images would be downloaded from; empty if they are on this machine."""
    from baseline.data.sources.place import optional_module

    download = ""
    datasets, external = map(optional_module, ("datasets", "external"))
    if datasets and place in datasets.DATASETS:
        download = datasets.pending_download(place)
    elif external and isinstance(place, str) and external.is_external(place):
        download = external.pending_export(place)
    return [f"images:   those of {place} are not on this machine; {download}"] if download else []


def describe_missing_weights(recipe: Recipe) -> list[str]:
    """Return a line that says where pretrained weights would be downloaded from.

    It is empty if they are on this machine, or if the network is chosen by what is available.
    """
    model = recipe.model
    arch = model.arch.split(" or ")[0]
    if arch == "auto" or not model.pretrained or model.weights:
        return []
    from baseline.vision.weights import check_arch, is_torchvision, offline_weights, timm_config, weight_urls

    check_arch(arch)
    if next(offline_weights(arch), None):
        return []
    hub = "" if is_torchvision(arch) else timm_config(arch).get("hf_hub_id")
    origin = f"the Hugging Face Hub ({hub})" if hub else next(iter(weight_urls(arch)), "")
    download = f"they would be downloaded from {origin}" if origin else "none are published"
    return [f"weights:  those of {arch} are not on this machine; {download}"]
