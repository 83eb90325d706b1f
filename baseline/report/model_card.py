"""Run folder -> the model card of its network, to publish. Knows the manifest's facts; adds none, and names no paths.

The card is `model/README.md`: a YAML header that the Hugging Face hub reads, and the same facts for people. What is not
in the run folder is left out. Whatever comes from the run is escaped, so that a class may be called anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from baseline import __version__
from baseline.data.sources.datasets import DATASETS
from baseline.errors import DataError, OutputError
from baseline.evaluation.explain import explain
from baseline.files import CARD_FILE, read_json, resolve_path, write_atomic
from baseline.progress import Progress
from baseline.recipe.schema import describe_schedule, describe_trained, format_lr
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
    from baseline.data.sources.datasets import Dataset

__all__ = ["write_card"]


MARKER = "<!-- Written by baseline; `baseline report` writes it again, and loses changes, while this line is here. -->"

MAX_CLASSES = 50
"""That are told one by one."""

FEW_IMAGES = 30
"""Test images of a class below which its own numbers are called rough."""

NAMING_FILES = ("conflict", "unreadable")
"""Findings whose words end, after a colon, in names of files."""

PATH_FIELDS = ("image_dir", "weights", "split_file", "fixes", "keep_if", "keep_model")
"""What a recipe may hold of one machine's files."""

OMITTED_FIELDS = ("name", "presets", "expected", "budget", "preset", "cache_gb", "workers", *PATH_FIELDS)
"""What a recipe holds that is no decision of this training, or is of one machine."""

OLD_RECIPE = {"tta": (), "split": "", "images_per_class": 0, "audit": "", "leaks": "", "seed": None}

OLD_MANIFEST: dict[str, Any] = {
    **{key: {} for key in ("data", "calibration", "seconds", "versions")},
    **dict.fromkeys(("device", "finished"), ""),
    "stages": [],
}
"""What older runs may not have written: nothing is told of it."""


def write_card(run: str | Path, progress: Progress | None = None) -> Path:
    """Writes the model card, `model/README.md`, of a finished run, and returns its path.

    A card without its marking line, which says that it is written again, has been taken over by hand: it stays.

    Raises:
        OutputError: if the folder holds no finished run or no model, or cannot be written.

    >>> write_card("runs/cifar10-20261122-101500")                                 # doctest: +SKIP
    PosixPath('runs/cifar10-20261122-101500/model/README.md')
    """
    progress = progress or Progress()
    run = Path(run)
    manifest, target = read_manifest(run), run / "model" / CARD_FILE
    facts = read_json(run / "model" / "model.json")
    if target.exists() and MARKER not in read_existing_card(target):
        progress.log(f"model card: {target} was changed by hand and stays")
        return target
    findings = run / "audit" / "findings.json"
    found = read_json(findings)["findings"] if findings.exists() else []
    write_atomic(target, render_card(manifest, facts, found))
    progress.log(f"model card: {target}")
    return target


def read_existing_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Mend or remove it.") from None


def render_card(manifest: dict[str, Any], facts: dict[str, Any], findings: list[dict[str, Any]]) -> str:
    import yaml

    recipe = OLD_RECIPE | manifest["recipe"]
    split = headline_split(manifest["metrics"])
    source = describe_source(manifest.get("images"), [collapse_to_line(name) for name in facts["classes"]])
    page = {
        "manifest": OLD_MANIFEST | manifest,
        "recipe": recipe,
        "facts": facts,
        "findings": [redact_finding(each) for each in findings],
        "source": source,
        "title": f"{source['title']}: {facts['arch']}",
        "split": split,
        "numbers": manifest["metrics"][split],
        "found": manifest["metrics"][split]["tta" if recipe["tta"] else "plain"],
        "many": facts.get("labels") == "many",
        "weights": describe_initial_weights(manifest.get("weights")),
        "most": MAX_CLASSES,
    }
    page |= {
        "told": explain(page["numbers"]) if "tta_gain" in page["numbers"] else [],
        "limits": list(list_limitations(page)),
        "again": portable_recipe(manifest["recipe"]),
        "again_data": Markup("" if recipe.get("data") == source["data"] else f" --data {source['data']}"),
        "own_files": [key for key in PATH_FIELDS if recipe.get(key)],
        "version": page["manifest"]["versions"].get("fastai-baseline", __version__),
        "mark": MARKER,
    }
    header = yaml.safe_dump(hub_metadata(page), sort_keys=False, allow_unicode=True, width=10**6)
    return markdown_environment().get_template("card.md.j2").render({**page, "header": header})


def hub_metadata(page: dict[str, Any]) -> dict[str, Any]:
    """What the Hugging Face hub reads: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    arch, source = page["facts"]["arch"], page["source"]
    library = page["facts"].get("library") or ("torchvision" if is_torchvision(arch) else "timm")
    known = {key: page["weights"][key] for key in ("license", "base_model") if page["weights"][key]}
    metrics = hub_metrics(page)
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"name": source["title"], "type": source["type"], "split": page["split"]},
        "metrics": metrics,
    }
    return {
        "library_name": "fastai",  # one of those that the hub knows; what is saved is the network of a fastai Learner
        "pipeline_tag": "image-classification",
        **known,
        **({"datasets": [source["hub"]]} if source["hub"] else {}),
        "metrics": list(dict.fromkeys(each["type"] for each in metrics)),
        "tags": ["fastai-baseline", library, arch, *(["multi-label"] if page["many"] else [])],
        "model-index": [{"name": page["title"], "results": [result]}],
    }


def hub_metrics(page: dict[str, Any]) -> list[dict[str, Any]]:
    numbers = page["numbers"]
    every = ", every label right" if page["many"] else ""
    rows = [("accuracy", f"Accuracy{every}", numbers["plain"]["accuracy"])]
    if page["recipe"]["tta"]:
        rows.insert(0, ("accuracy", f"Accuracy{every}, with test-time augmentation", numbers["tta"]["accuracy"]))
    for kind in ("micro", "macro") if page["many"] else ("macro",):
        rows.append(("f1", f"{kind.capitalize()} F1", numbers["tta"].get(f"{kind}_f1")))
    return [{"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in rows if value is not None]


def describe_source(images: str | None, classes: list[str]) -> dict[str, Any]:
    """What is told of where the images are from: the name of a public data set, else the classes, never a path."""
    kind, _, name = (images or "").partition(":")
    known: Dataset | None = DATASETS.get(images or "")
    if known:
        return named_source(known.title, known.hub or known.name, known.hub) | {
            "citation": known.citation,
            "data": images,
        }
    if kind == "torchvision" and re.fullmatch(r"\w+", name):
        return named_source(f"{name} of torchvision", name) | {"data": images}
    if kind == "hf" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not is_existing_path(name):
        return named_source(name, name, name) | {"data": images}
    listed = ", ".join(classes)
    words = f"{len(classes)} classes of images"
    return named_source(listed if len(classes) <= 5 and len(listed) <= 60 else words, "imagefolder")


def named_source(title: str, kind: str, hub: str = "") -> dict[str, Any]:
    return {"title": title, "type": kind, "hub": hub, "citation": "", "data": "IMAGES"}


def is_existing_path(name: str) -> bool:
    try:
        return resolve_path(name).exists()
    except DataError:
        return False


def describe_initial_weights(said: Any) -> dict[str, str]:
    """Of the weights that training began with: where they were found, unless that is a path, hash, licence, hub id."""
    nothing = dict.fromkeys(("words", "sha256", "license", "base_model"), "")
    if not isinstance(said, dict):
        return nothing | ({"words": "random weights"} if said == "random" else {})
    weights = Weights(**said)
    public = weights.origin.startswith((SOURCE_PACKAGE, SOURCE_HUB, SOURCE_HUB_CACHE, "https://"))
    where = f" from {weights.origin}" if public else ""
    return nothing | {"words": f"pretrained weights{where}", "sha256": weights.sha256, **published_info(weights)}


def redact_finding(finding: dict[str, Any]) -> dict[str, Any]:
    if finding["finding"] not in NAMING_FILES:
        return finding
    return finding | {"words": finding["words"].partition(":")[0]}


def list_limitations(page: dict[str, Any]) -> Iterator[str]:
    """What the measured numbers warn of."""
    split, found, numbers = page["split"], page["found"], page["numbers"]
    low, high = found["interval"]
    if split == "valid":
        yield "There was no test split: the weights were chosen on the valid images of the number, which flatters it."
    if high - low > 0.04:
        spread = f"{100 * (high - low):.1f} points"
        yield f"{numbers['images']:,} {split} images are few: the interval of the share of right ones is {spread} wide."
    if "majority" in numbers and low <= numbers["majority"]["accuracy"]:
        yield f"It is not shown to be better than always saying '{numbers['majority']['label']}'."
    yield from class_limitations(numbers["tta"], split)
    for finding in page["findings"]:
        dropped = finding["finding"] == "leak" and page["recipe"]["leaks"] == "drop"
        if finding["finding"] in ("leak", "conflict", "unused group") and not dropped:
            yield f"{finding['words']} ({finding['effect']})."
    if page["recipe"]["seed"] is not None:
        yield f"It is one training with one seed ({page['recipe']['seed']}); another would give another number."
    yield f"It was measured on the {split} images alone; nothing was measured on images from elsewhere."
    if not page["many"]:
        count = len(page["facts"]["classes"])
        yield f"It answers with one of its {count:,} classes, whatever an image shows."


def class_limitations(tta: dict[str, Any], split: str) -> Iterator[str]:
    classes = tta.get("classes", {})
    seen = {name: row for name, row in classes.items() if row["images"]}
    if seen:
        name, worst = min(seen.items(), key=lambda item: item[1]["recall"])
        if worst["recall"] < 1:
            low, high = worst["recall_interval"]
            yield (
                f"The class that it finds least is '{name}': {worst['recall']:.1%} of {worst['images']:,} {split} "
                f"images (95% interval {low:.1%} to {high:.1%})."
            )
    for pair in tta.get("confused", [])[:1]:
        yield (
            f"Its most frequent mistake: {pair['images']:,} {split} images of '{pair['label']}' "
            f"({pair['share']:.1%}) are taken for '{pair['predicted']}'."
        )
    few = [name for name, row in classes.items() if row["images"] < FEW_IMAGES]
    if few:
        share = f"{len(few):,} of {len(classes):,} classes"
        yield f"{share} have fewer than {FEW_IMAGES} {split} images: what is told of each of them is rough."


def portable_recipe(recipe: dict[str, Any]) -> Markup:
    """The recipe as JSON for a fenced block, without what is of one machine."""
    kept = {key: value for key, value in recipe.items() if key not in OMITTED_FIELDS and value not in ("", None)}
    if kept.get("data") not in DATASETS:
        kept.pop("data", None)
    return Markup(json.dumps(kept, indent=2, ensure_ascii=False).replace("`", "\\u0060"))


def markdown_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("baseline.report"),
        finalize=escape_value,  # class names are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=lambda share: "–" if share is None else f"{share:.2%}",
        thousands=lambda value: f"{value:,}",
        course=describe_schedule,
        rate=format_lr,
        trained=describe_trained,
        as_is=Markup,
    )
    return environment


def escape_value(value: Any) -> Any:
    """Text as Markdown that shows it, in one line; what is said to be Markdown stays."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape_markdown(value)


def escape_markdown(text: str) -> str:
    r"""
    >>> escape_markdown("a|b\n*c* <i>")
    'a\\|b \\*c\\* \\<i\\>'
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&$@!])", r"\\\1", printable_text(text)).replace("://", r"\://")


def collapse_to_line(text: Any) -> str:
    return printable_text(str(text)).strip()


def printable_text(text: str) -> str:
    """The text in one line, without what cannot be seen but what joins emoji."""
    seen = "".join(each if each.isprintable() or each == "\N{ZERO WIDTH JOINER}" else " " for each in text)
    return re.sub(r"\s+", " ", seen)
