"""Read and write model folders, checking everything that they contain.

| file | holds |
|---|---|
| `model.safetensors` | the network's tensors |
| `model.json` | how to build and feed the network: `FIELD_CHECKS`, and anything else worth knowing about it |
| `golden.safetensors` | a few images as the network receives them, and its outputs for them; not in every folder |

Nothing here pickles, unpickles or follows a path that a file names. Nothing in a folder is trusted before it was
checked: tensors against their sha256 and then against the network that `model.json` names, before memory is allocated
for them.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from baseline.errors import OutputError, RecipeError, WeightsError, first_line, similar_path
from baseline.files import CONFIG_FILE, GOLDEN_FILE, TENSORS_FILE, parse_json, read_json, to_json, write_atomic
from baseline.parallel.memory import build_without_values, forward_bytes, require_memory
from baseline.reading import load_tensors, read_content
from baseline.recipe.fields import VIEWS
from baseline.recipe.legacy import upgrade_model_config
from baseline.recipe.schema import HEADS, PRECISIONS, RESIZES
from baseline.recipe.validation import is_int, is_number
from baseline.vision.network import FEATURES, build_network

__all__ = [
    "EXPERIMENT_FILES",
    "FIELD_CHECKS",
    "load_network",
    "member_folders",
    "model_folder",
    "read_config",
    "read_golden",
    "save_network",
]


EXPERIMENT_FILES = {"fold": "folds.json", "seed": "seeds.json"}
"""Summary file of a folder of several runs, written last, by the prefix of the runs' folder names."""


FORMAT = 3
"""Version of the model folder's layout; older versions are read, too. Version 1 had no checksums, and version 2 said
`labels` where `task` is now."""


MAX_CLASSES = 100_000
"""Maximum number of classes of a model."""


MAX_BYTES = {TENSORS_FILE: 20 * 10**9, GOLDEN_FILE: 10**9, CONFIG_FILE: 50 * 10**6}
"""Maximum size in bytes of each file of a model folder."""


_OPTIONAL_FIELDS = {"tta": [], "threshold": 0.5, "thresholds": [], "temperature": None, "crop": 1.0, "value_range": [],
                    "precision": "float32", "weights_license": "unknown", "features": "fastai"}  # fmt: skip
"""Values of the fields that the first model folders did not have."""


def _is_triple(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(number, low, high) for number in value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(math.isfinite, value)) and value[0] < value[1]


def _is_class_list(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CLASSES:
        return False
    return all(isinstance(name, str) and _is_unicode(name) for name in value) and len({*value}) == len(value)


def _is_threshold_list(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(number, 0.001, 0.999) for number in value)


def _is_cut_point_list(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(cut, 0, MAX_CLASSES) for cut in value) and value == sorted(value)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


FIELD_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arch": (lambda v: isinstance(v, str) and 0 < len(v) < 200, "the name of an architecture"),
    "head": (lambda v: v in HEADS, f"one of {', '.join(HEADS)}"),
    "classes": (_is_class_list, f"a list of 1 to {MAX_CLASSES:,} unique names"),
    "image_size": (lambda v: is_int(v, 8, 4096), "a whole number of pixels from 8 to 4096"),
    "resize": (lambda v: v in RESIZES, f"one of {', '.join(RESIZES)}"),
    "value_range": (lambda v: v == [] or _is_range(v), "the values of black and white, or an empty list"),
    "mean": (lambda v: _is_triple(v, -1000, 1000), "three numbers, for red, green and blue"),
    "std": (lambda v: _is_triple(v, 1e-6, 1000), "three numbers above 0, for red, green and blue"),
    "tta": (lambda v: isinstance(v, list) and all(view in VIEWS for view in v), f"a list from {', '.join(VIEWS)}"),
    "task": (lambda v: v in ("single", "multilabel"), "single or multilabel"),
    "threshold": (lambda v: is_number(v, 0.001, 0.999), "a probability above 0 and below 1"),
    "thresholds": (_is_threshold_list, "one probability above 0 and below 1 per class, or an empty list"),
    "cut_points": (_is_cut_point_list, "ascending numbers, one fewer than classes, or an empty list"),
    "temperature": (lambda v: v is None or is_number(v, 1e-3, 1e3), "a number from 0.001 to 1000, or null"),
    "crop": (lambda v: is_number(v, 0.1, 1), "a fraction from 0.1 to 1"),
    "precision": (lambda v: v in PRECISIONS[1:], f"one of {', '.join(PRECISIONS[1:])}"),
    "features": (lambda v: v in FEATURES, f"one of {', '.join(FEATURES)}"),
    "weights_license": (lambda v: v is None or (isinstance(v, str) and len(v) < 200), "the name of a license, or null"),
}
"""For each field of `model.json`: a function that tells whether a value is valid, and what a valid value is."""


def save_network(
    model: nn.Module, config: Mapping[str, Any], folder: Path, golden: Mapping[str, Tensor] | None = None
) -> None:
    """Write the files of a model folder; `model.json`, which holds the sha256 of the others, comes last.

    Args:
        config: the fields of `FIELD_CHECKS`, and anything else worth knowing about the network.
        golden: the result of `golden_outputs`.
    """
    copied = partial(
        torch.clone, memory_format=torch.contiguous_format
    )  # safetensors refuses shared memory, as in CoaT
    files = {TENSORS_FILE: save({name: copied(value.detach().cpu()) for name, value in model.state_dict().items()})}
    if golden is not None:
        files[GOLDEN_FILE] = save(dict(golden))
    for name, content in files.items():
        write_atomic(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_atomic(folder / CONFIG_FILE, to_json({"format": FORMAT, **config, "sha256": hashes}))


def load_network(folder: str | Path) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return the network of a model folder (or of a run that holds one), in evaluation mode on the CPU, and its config.

    Fields that an old folder lacks are filled in; `sha256` holds the hash of `model.safetensors` as it was read.

    Raises:
        OutputError: if there is no model folder, a newer version wrote it, or its `model.json` is invalid.
        WeightsError: if its tensors are damaged or do not fit the network that it names.
    """
    folder = model_folder(folder)
    config = read_config(folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    require_memory(2 * path.stat().st_size if path.is_file() else 0, str(path))
    content = read_bytes(path)
    tensors = read_tensors(path, content, config)
    skeleton = build_on_meta(folder / CONFIG_FILE, config)
    check_tensors(path, tensors, skeleton, config)
    description = f"{config['arch']} at {config['image_size']} pixels"
    needed, accepted = forward_bytes(skeleton.eval(), config["image_size"])
    require_memory(len(content) + needed, f"{folder}: {description}")
    model = build_from_config(folder / CONFIG_FILE, config).eval()
    model.load_state_dict(tensors)
    if not accepted and not accepts_size(model, config["image_size"]):
        raise OutputError(
            f"{folder / CONFIG_FILE}: {config['arch']} does not accept images of {config['image_size']} pixels. "
            "Copy the folder again from an intact copy."
        )
    if TENSORS_FILE not in config["sha256"]:  # otherwise `read_tensors` has compared it
        config["sha256"] = {TENSORS_FILE: hashlib.sha256(content).hexdigest()}
    return model, config


def read_golden(folder: Path, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the folder's golden images, N x size x size x 3, uint8, and their probabilities, N x classes, float32.

    Raises:
        OutputError: if the folder has none.
        WeightsError: if they are damaged.
    """
    path = folder / GOLDEN_FILE
    if GOLDEN_FILE not in config.get("sha256", {}) or not path.exists():
        raise OutputError(f"{folder} has no golden inputs: an older version wrote it, or they were left out.")
    tensors = read_tensors(path, read_bytes(path), config)
    images = tensors.get("images", tensors.get("photos", torch.empty(0)))  # its name in older folders
    probabilities = tensors.get("probabilities", torch.empty(0))
    count, classes = len(images), len(config["classes"])
    size = images.shape[1] if images.ndim == 4 else 0
    valid = images.dtype == torch.uint8 and images.shape == (count, size, size, 3) and count > 0
    if not valid or not 0 < size <= 4 * config["image_size"] or probabilities.shape != (count, classes):
        raise WeightsError(f"{path} does not hold images and their probabilities. Copy it again.")
    return images, probabilities.float()


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a model folder, if it is a regular file of a plausible size."""
    try:
        return read_content(path, MAX_BYTES[path.name])
    except (OSError, ValueError) as error:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a file. Pass a run or its model folder.") from None
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be read: {reason}.{similar_path(path.parent)} "
            "Pass the folder of a finished run, or a model folder."
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of `model.json` after checking each field, with old folders' missing fields filled in."""
    try:
        config = parse_json(read_bytes(path).decode("utf-8"), nan=False)
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None
    if not isinstance(config, dict):
        raise OutputError(f"{path} does not describe a network. Pass a run or its model folder.")
    version: Any = config.get("format")
    if version not in range(1, FORMAT + 1) or isinstance(version, bool | float):
        raise OutputError(
            f"{path.parent} has format {reprlib.repr(version)}; this version reads 1 to {FORMAT}. Update baseline."
        )
    config = _OPTIONAL_FIELDS | upgrade_model_config(config)
    missing = [name for name in FIELD_CHECKS if name not in config and name != "cut_points"]
    missing += ["sha256"] if version > 1 and not _is_hash_table(config.get("sha256")) else []
    if missing:
        raise OutputError(f"{path} lacks {', '.join(missing)}. Copy it again from an intact copy.")
    invalid = [name for name, (is_valid, _) in FIELD_CHECKS.items() if name in config and not is_valid(config[name])]
    if not invalid:
        counts = {"thresholds": len(config["classes"]), "cut_points": len(config["classes"]) - 1}
        invalid = [name for name, count in counts.items() if len(config.get(name, [])) not in (0, count)]
    if invalid:
        problems = "; ".join(
            f"{name} is {reprlib.repr(config[name])}, needed: {FIELD_CHECKS[name][1]}" for name in invalid
        )
        raise OutputError(f"{path}: {problems}. Copy it again from an intact copy.")
    return config if version > 1 else config | {"sha256": {}}


def _is_hash_table(value: Any) -> bool:
    is_hash = re.compile("[0-9a-f]{64}").fullmatch
    return isinstance(value, dict) and TENSORS_FILE in value and all(is_hash(str(text)) for text in value.values())


def read_tensors(path: Path, content: bytes, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors in a file, if it matches its sha256 in `model.json` and all values are finite."""
    is_safetensors = content[8:9] == b"{"  # after the length of the header, whose first byte may be that of a pickle
    if not is_safetensors and (content[:1] == b"\x80" or content[:4] == b"PK\x03\x04"):
        raise WeightsError(f"{path} is a pickle or an archive, and was not opened; safetensors were needed.")
    expected = config["sha256"].get(path.name)
    if expected and (actual := hashlib.sha256(content).hexdigest()) != expected:
        raise WeightsError(
            f"{path} is damaged: its sha256 begins with {actual[:8]}, not {expected[:8]}. Copy it again."
        )
    try:
        tensors = load_tensors(path, content)
    except ValueError as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None
    if bad := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise WeightsError(f"{path} holds values that are not finite, first in '{bad[0][:80]}'. Copy it again.")
    return tensors


def check_tensors(path: Path, tensors: Mapping[str, Tensor], network: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise a `WeightsError` if the tensors are not those of the config's network, by name, shape and kind."""
    expected = network.state_dict()
    description = f"{config['arch']} with {len(config['classes']):,} classes"
    for name, value in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise WeightsError(f"{path} lacks '{name}' of {description}. Copy it again, with its own {CONFIG_FILE}.")
        if tensor.shape != value.shape or tensor.is_floating_point() != value.is_floating_point():
            raise WeightsError(
                f"{path} belongs to a network other than {description}: '{name}' is {tensor_spec(tensor)}, not "
                f"{tensor_spec(value)}. Copy it again, with its own {CONFIG_FILE}."
            )
    if extra := [name for name in tensors if name not in expected]:
        raise WeightsError(
            f"{path} holds '{extra[0][:80]}', which {description} does not have. Copy it with its own {CONFIG_FILE}."
        )


def build_on_meta(path: Path, config: Mapping[str, Any]) -> nn.Sequential:
    """Build the network without allocating its tensors; with them if the architecture cannot be built otherwise."""
    try:
        return build_without_values(lambda: _build(config))
    except RecipeError as error:
        raise OutputError(f"{path}: {error}") from None
    except Exception:  # a few architectures compute with their own values while they are built
        return build_from_config(path, config)


@torch.inference_mode()
def accepts_size(model: nn.Module, size: int) -> bool:
    """Return whether the network accepts images of this size in pixels."""
    try:
        model(torch.zeros(1, 3, size, size))
    except Exception:
        return False
    return True


def build_from_config(path: Path, config: Mapping[str, Any]) -> nn.Sequential:
    """Build the network that the config describes."""
    try:
        return _build(config)
    except Exception as error:
        raise OutputError(f"{path}: the network {config['arch']} cannot be built here: {first_line(error)}") from None


def _build(config: Mapping[str, Any]) -> nn.Sequential:
    sizes = {"image_size": config["image_size"], "features": config["features"]}
    return build_network(config["arch"], len(config["classes"]), None, config["head"], **sizes)[0]


def tensor_spec(value: Tensor) -> str:
    """Describe a tensor's shape and type for an error message."""
    return f"{' x '.join(map(str, value.shape)) or 'one value'} {str(value.dtype).removeprefix('torch.')}"


def model_folder(folder: str | Path) -> Path:
    """Return the folder itself if it holds a `model.json`, else its subfolder `model/`, as in a run."""
    folder = Path(folder).expanduser()
    return folder if (folder / CONFIG_FILE).exists() else folder / "model"


def member_folders(folder: str | Path) -> list[Path]:
    """Return the folders of the runs in a folder of folds or seeds; for any other folder, the folder itself.

    Raises:
        OutputError: if not all of its runs are finished, or one is missing.
    """
    folder = Path(folder).expanduser()
    if (model_folder(folder) / CONFIG_FILE).exists():
        return [folder]
    for kind, summary in EXPERIMENT_FILES.items():
        if (folder / summary).exists():
            names = member_names(folder / summary, kind)
            if missing := [name for name in names if not (model_folder(folder / name) / CONFIG_FILE).exists()]:
                raise OutputError(f"{folder / missing[0]}, which {summary} names, holds no model. Copy it there again.")
            return [folder / name for name in names]
        if finished := list(folder.glob(f"{kind}-*/manifest.json")):
            raise OutputError(
                f"{folder} holds {count_runs(len(finished), kind)} but no {summary}: not all runs have finished. Run "
                "the same command with --resume, or name their folders."
            )
    return [folder]


def count_runs(count: int, kind: str) -> str:
    """Return the number of finished runs in words.

    >>> count_runs(1, "fold"), count_runs(2, "seed")
    ('1 finished fold', '2 finished seeds')
    """
    return f"{count} finished {kind}{'' if count == 1 else 's'}"


def member_names(summary: Path, kind: str) -> list[str]:
    """Return the folder names of the runs that a summary file lists, independent of where the whole folder is now."""
    content = read_json(summary)
    runs = content.get("runs") if isinstance(content, dict) else None
    entries = runs if isinstance(runs, list) else []
    names = [Path(str(entry.get("folder"))).name if isinstance(entry, dict) else "" for entry in entries]
    if not names or not all(re.fullmatch(rf"{kind}-\d{{1,10}}", name) for name in names):
        raise OutputError(f"{summary} names no {kind}s. Pass the folder of a finished run.")
    return names
