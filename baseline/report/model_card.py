"""Write the model card of a run for publication, without local paths.

The card is `model/README.md`: a YAML header that the Hugging Face Hub reads, and the same information in prose. It
reports only what the run folder records. Everything that comes from the run is escaped, so a class may have any name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from baseline import __version__
from baseline.data.sources.datasets import DATASETS
from baseline.errors import DataError, OutputError
from baseline.evaluation.explain import describe_references, explain
from baseline.files import CARD_FILE, read_json, refuse_damaged, resolve_path, write_atomic
from baseline.progress import Progress
from baseline.reading import read_text
from baseline.recipe.describe import describe_schedule, describe_trained, format_lr
from baseline.recipe.diff import flat_recipe
from baseline.recipe.legacy import upgrade_model_config
from baseline.report.headline import headline_view, named_headline
from baseline.report.html import interval_digits
from baseline.runs.folder import headline_split, read_manifest
from baseline.vision.weights import (
    SOURCE_HUB,
    SOURCE_HUB_CACHE,
    SOURCE_PACKAGE,
    Weights,
    is_torchvision,
    published_info,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from baseline.data.sources.datasets import Dataset
    from baseline.report.audit_files import FindingRecord
    from baseline.runs.manifest import Manifest

__all__ = ["write_card"]


MARKER = "<!-- Written by baseline; `baseline report` writes it again, and loses changes, while this line is here. -->"

MAX_CLASSES = 50
"""Maximum number of classes that are listed one by one."""

FEW_IMAGES = 30
"""Number of test images of a class below which its metrics are flagged as imprecise."""

FINDINGS_WITH_FILE_NAMES = ("conflict", "unreadable")
"""Findings whose text ends, after a colon, in file names."""

PATH_FIELDS = ("image_dir", "weights", "split_file", "fixes")
"""Recipe fields that may name local files."""

OMITTED_FIELDS = ("name", "presets", "expected", "budget", "preset", "options", "cache_gb", "workers", *PATH_FIELDS)
"""Recipe fields that do not affect training, or depend on the machine."""

RECIPE_DEFAULTS = {"tta": (), "split": "", "images_per_class": 0, "audit": "", "leaks": "", "seed": None}
"""Defaults for recipe fields that older runs did not record."""

MANIFEST_DEFAULTS: dict[str, Any] = {
    **{key: {} for key in ("data", "calibration", "seconds", "versions")},
    **dict.fromkeys(("device", "finished"), ""),
    "stages": [],
}
"""Defaults for what older runs did not record; the card does not mention it."""


def write_card(run: str | Path, progress: Progress | None = None) -> Path:
    """Write the model card of a finished run, `model/README.md`, and return its path.

    A card without its marker line, which says that it will be overwritten, has been edited by hand and is not changed.

    Raises:
        OutputError: if the folder contains no finished run or no model, or cannot be written.

    >>> write_card("runs/cifar10-20261122-101500")                                 # doctest: +SKIP
    PosixPath('runs/cifar10-20261122-101500/model/README.md')
    """
    progress = progress or Progress()
    run = Path(run)
    with refuse_damaged(run):
        return _write_card(run, progress)


def _write_card(run: Path, progress: Progress) -> Path:
    manifest, target = read_manifest(run), run / "model" / CARD_FILE
    facts = upgrade_model_config(read_json(run / "model" / "model.json"))
    if target.exists() and MARKER not in read_existing_card(target):
        progress.log(f"model card: {target} was edited by hand and is not changed")
        return target
    file = run / "audit" / "findings.json"
    findings = read_json(file)["findings"] if file.exists() else []
    write_atomic(target, render_card(manifest, facts, findings))
    progress.log(f"model card: {target}")
    return target


def read_existing_card(path: Path) -> str:
    """Return the text of a card that is already there."""
    try:
        return read_text(path, errors="replace")
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Fix or remove it.") from None


def render_card(manifest: Manifest, facts: dict[str, Any], findings: list[FindingRecord]) -> str:
    """Return the card as Markdown with a YAML header."""
    recipe = RECIPE_DEFAULTS | flat_recipe(manifest["recipe"])
    split, view = headline_split(manifest["metrics"]), headline_view(manifest)
    source = describe_source(manifest.get("images"), [collapse_to_line(name) for name in facts["classes"]])
    page = {
        "manifest": MANIFEST_DEFAULTS | manifest,
        "recipe": recipe,
        "facts": facts,
        "findings": [redact_finding(finding) for finding in findings],
        "source": source,
        "title": f"{source['title']}: {facts['arch']}",
        "split": split,
        "numbers": manifest["metrics"][split],
        "view": view,
        "metrics": (metrics := manifest["metrics"][split][view]),
        "digits": interval_digits(metrics["interval"]),
        "headline": named_headline(manifest, split, view),
        "many": facts["task"] == "multilabel",
        "weights": describe_initial_weights(manifest.get("weights")),
        "max_classes": MAX_CLASSES,
    }
    sentences = explain(page["numbers"], view) if "tta_gain" in page["numbers"] else []
    page |= {
        "sentences": [*sentences, *describe_references(manifest)],
        "limitations": list(list_limitations(page)),
        "recipe_json": portable_recipe(flat_recipe(manifest["recipe"])),
        "data_option": Markup("" if recipe.get("data") == source["data"] else f" --data {source['data']}"),
        "omitted_files": [key for key in PATH_FIELDS if recipe.get(key)],
        "version": page["manifest"]["versions"].get("fastai-baseline", __version__),
        "marker": MARKER,
    }
    return markdown_environment().get_template("card.md.j2").render({**page, "header": hub_metadata(page).to_yaml()})


def hub_metadata(page: dict[str, Any]) -> ModelCardData:
    """Return the metadata for the Hugging Face Hub: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    from huggingface_hub import ModelCardData

    arch, source, weights = page["facts"]["arch"], page["source"], page["weights"]
    library = page["facts"].get("library") or ("torchvision" if is_torchvision(arch) else "timm")
    results = hub_results(page)
    return ModelCardData(
        library_name="fastai-baseline",  # the hub's snippet for fastai needs a pickle, and would not work
        pipeline_tag="image-classification",
        license=weights["license"] or None,
        base_model=weights["base_model"] or None,
        datasets=[source["hub"]] if source["hub"] else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)),
        tags=["fastai-baseline", library, arch, *(["multi-label"] if page["many"] else [])],
        model_name=page["title"],
        eval_results=results,
    )


def hub_results(page: dict[str, Any]) -> list[EvalResult]:
    """Return the metrics as the hub's evaluation results."""
    from huggingface_hub import EvalResult

    numbers, source = page["numbers"], page["source"]
    suffix = ", all labels correct" if page["many"] else ""
    rows = [("accuracy", f"Accuracy{suffix}", numbers["plain"]["accuracy"])]
    if page["recipe"]["tta"]:
        rows.insert(0, ("accuracy", f"Accuracy{suffix}, with TTA", numbers["tta"]["accuracy"]))
    for kind in ("micro", "macro") if page["many"] else ("macro",):
        rows.append(("f1", f"{kind.capitalize()} F1", numbers["tta"].get(f"{kind}_f1")))
    if (headline := page["headline"]) and headline.metric.name != "accuracy":
        rows.insert(0, (headline.metric.name, headline.metric.title, headline.value))
    result = partial(
        EvalResult,
        task_type="image-classification",
        task_name="Image classification",
        dataset_name=source["title"],
        dataset_type=source["type"],
        dataset_split=page["split"],
    )
    return [
        result(metric_type=kind, metric_name=name, metric_value=round(value, 4))
        for kind, name, value in rows
        if value is not None
    ]


class ImageSource(TypedDict):
    """Where the images of a run come from, without paths."""

    title: str
    type: str
    hub: str
    """ID of the dataset on the Hugging Face Hub, if it is there."""
    citation: str
    data: str
    """Value of `--data` that names the images."""


def describe_source(images: str | None, classes: list[str]) -> ImageSource:
    """Describe the source of the images: the name of a public dataset, or else the classes, but never a path."""
    kind, _, name = (images or "").partition(":")
    dataset: Dataset | None = DATASETS.get(images or "")
    if dataset:
        source = named_source(dataset.title, dataset.hub_id or dataset.name, dataset.hub_id)
        return source | {"citation": dataset.citation, "data": dataset.name}
    if kind == "torchvision" and re.fullmatch(r"\w+", name):
        return named_source(f"{name} of torchvision", name) | {"data": f"{kind}:{name}"}
    if kind == "hf" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not is_existing_path(name):
        return named_source(name, name, name) | {"data": f"{kind}:{name}"}
    names = ", ".join(classes)
    short = len(classes) <= 5 and len(names) <= 60
    return named_source(names if short else f"{len(classes)} classes of images", "imagefolder")


def named_source(title: str, kind: str, hub: str = "") -> ImageSource:
    """Return a source with this title, type and hub id."""
    return {"title": title, "type": kind, "hub": hub, "citation": "", "data": "IMAGES"}


def is_existing_path(name: str) -> bool:
    """Return whether the name of a hub dataset is in fact a path on this machine."""
    try:
        return resolve_path(name).exists()
    except DataError:
        return False


def describe_initial_weights(recorded: Any) -> dict[str, str]:
    """Describe the weights that training started from: origin (unless it is a path), hash, license and hub id.

    Args:
        recorded: `weights` of the manifest: facts, `"random"`, or None.
    """
    empty = dict.fromkeys(("description", "sha256", "license", "base_model"), "")
    if not isinstance(recorded, dict):
        return empty | ({"description": "random weights"} if recorded == "random" else {})
    weights = Weights(**recorded)
    public = weights.origin.startswith((SOURCE_PACKAGE, SOURCE_HUB, SOURCE_HUB_CACHE, "https://"))
    description = "pretrained weights" + (f" from {weights.origin}" if public else "")
    return empty | {"description": description, "sha256": weights.sha256, **published_info(weights)}


def redact_finding(finding: FindingRecord) -> FindingRecord:
    """Return the finding without names of files."""
    if finding["finding"] not in FINDINGS_WITH_FILE_NAMES:
        return finding
    return finding | {"words": finding["words"].partition(":")[0]}


def list_limitations(page: dict[str, Any]) -> Iterator[str]:
    """Yield the caveats that follow from the metrics."""
    split, numbers = page["split"], page["numbers"]
    low, high = page["metrics"]["interval"]
    if split == "valid":
        yield "There was no test split: weights were chosen on the same validation images, so metrics are optimistic."
    if high - low > 0.04:
        images = f"{numbers['images']:,} {split} image{'' if numbers['images'] == 1 else 's'}"
        width = f"{100 * (high - low):.1f} points wide"
        yield f"With only {images}, the 95% confidence interval of the accuracy is {width}."
    if "majority" in numbers and low <= numbers["majority"]["accuracy"]:
        majority = numbers["majority"]["label"]
        yield f"The metrics do not show that it is better than always predicting '{majority}'."
    yield from class_limitations(numbers["tta"], split)
    for finding in page["findings"]:
        dropped = finding["finding"] == "leak" and page["recipe"]["leaks"] == "drop"
        if finding["finding"] in ("leak", "conflict", "unused group") and not dropped:
            yield f"{finding['words']} ({finding['effect']})."
    if page["recipe"]["seed"] is not None:
        seed = page["recipe"]["seed"]
        yield f"The metrics are those of one training run with seed {seed}; another seed would give different ones."
    yield f"It was evaluated on the {split} images only, not on images from other sources."
    if not page["many"]:
        count = len(page["facts"]["classes"])
        yield f"It always predicts one of its {count:,} classes, whatever an image shows."


def class_limitations(tta: dict[str, Any], split: str) -> Iterator[str]:
    """Yield the weakest class, the most frequent confusion, and the number of classes with few images."""
    classes = tta.get("classes", {})
    present = {name: row for name, row in classes.items() if row["images"]}
    if present:
        name, worst = min(present.items(), key=lambda item: item[1]["recall"])
        if worst["recall"] < 1:
            low, high = worst["recall_interval"]
            yield (
                f"The class with the lowest recall is '{name}': {worst['recall']:.1%} of {worst['images']:,} {split} "
                f"image{'' if worst['images'] == 1 else 's'} (95% confidence interval {low:.1%} to {high:.1%})."
            )
    for pair in tta.get("confused", [])[:1]:
        images = f"{pair['images']:,} {split} image{'' if pair['images'] == 1 else 's'} of '{pair['label']}'"
        verb = "is" if pair["images"] == 1 else "are"
        yield f"The most frequent confusion: {images} ({pair['share']:.1%}) {verb} predicted as '{pair['predicted']}'."
    few = [name for name, row in classes.items() if row["images"] < FEW_IMAGES]
    if few:
        share = f"{len(few):,} of {len(classes):,} classes {'has' if len(few) == 1 else 'have'}"
        yield f"{share} fewer than {FEW_IMAGES} {split} images, so the metrics of these classes are imprecise."


def portable_recipe(recipe: dict[str, Any]) -> Markup:
    """Return the recipe as JSON for a fenced block, without fields that depend on one machine."""
    portable = {key: value for key, value in recipe.items() if key not in OMITTED_FIELDS and value not in ("", None)}
    if portable.get("data") not in DATASETS:
        portable.pop("data", None)
    return Markup(json.dumps(portable, indent=2, ensure_ascii=False).replace("`", "\\u0060"))


@cache
def markdown_environment() -> Environment:
    """Return the Jinja environment of the card, which escapes every value for Markdown."""
    environment = Environment(
        loader=PackageLoader("baseline.report"),
        finalize=escape_value,  # class names are not under our control
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=lambda share, digits=2: "–" if share is None else f"{share:.{digits}%}",
        digits=interval_digits,
        thousands=lambda value: f"{value:,}",
        course=describe_schedule,
        rate=format_lr,
        trained=describe_trained,
        as_is=Markup,
    )
    return environment


def escape_value(value: Any) -> Any:
    """Return text escaped for Markdown and in one line; Markdown and other values stay as they are."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape_markdown(value)


def escape_markdown(text: str) -> str:
    r"""Return Markdown that shows the text literally, in one line.

    >>> escape_markdown("a|b\n*c* <i>")
    'a\\|b \\*c\\* \\<i\\>'
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&$@!])", r"\\\1", printable_text(text)).replace("://", r"\://")


def collapse_to_line(text: Any) -> str:
    """Return the value as text in one line, without space at its ends."""
    return printable_text(str(text)).strip()


def printable_text(text: str) -> str:
    """Return the text in one line without unprintable characters, except the joiner inside emoji."""
    visible = "".join(char if char.isprintable() or char == "\N{ZERO WIDTH JOINER}" else " " for char in text)
    return re.sub(r"\s+", " ", visible)
