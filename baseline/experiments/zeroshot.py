"""Zero-shot classification with CLIP: class probabilities from the class names alone, without training images.

Needs open_clip (extra `clip`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.data.image import load_image
from baseline.errors import DataError, RecipeError, WeightsError, missing_package, unknown_name
from baseline.progress import Progress
from baseline.vision.weights import state_dict, weights_from_file

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["DEFAULT_CLIP", "DEFAULT_PROMPT", "ClipClassifier", "ClipModel", "class_prompts", "load_clip", "parse_clip"]


DEFAULT_CLIP = "ViT-B-32:laion2b_s34b_b79k"

DEFAULT_PROMPT = "a photo of a {class}"

BATCH_SIZE = 64
"""Number of images, or of prompts, per batch."""

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""Preprocessing settings in open_clip's configurations of published weights."""


@dataclass(frozen=True)
class ClipModel:
    """The CLIP model and prompt of a zero-shot classification."""

    arch: str
    """open_clip's name of the architecture."""
    weights: str
    """open_clip's name of published weights, or the absolute path of a file."""
    prompt: str
    """Prompt with {class} in the place of the class name."""

    @property
    def description(self) -> str:
        return f'{self.arch}:{self.weights}, prompt "{self.prompt}"'


@dataclass(frozen=True)
class ClipClassifier:
    """A loaded CLIP model that classifies images by prompts."""

    model: Any
    preprocess: Any
    """The model's own preprocessing: a PIL image to a tensor, 3 x H x W."""
    tokenizer: Any
    weights: Weights

    def probabilities(
        self,
        paths: Sequence[str],
        prompts: Sequence[str],
        *,
        value_range: Sequence[float] = (),
        workers: int = 0,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the softmax of each image's scaled similarities to the prompts: images x prompts, float64.

        Args:
            value_range: see `load_image`.
            workers: number of processes that read images in the background.
        """
        import torch
        from fastai.torch_core import default_device
        from torch.utils.data import DataLoader

        device = default_device()
        model = self.model.to(device).eval()
        images: Any = list(paths)
        loader = DataLoader(
            images, BATCH_SIZE, num_workers=workers, collate_fn=partial(load_clip_batch, self.preprocess, value_range)
        )
        with torch.inference_mode(), (progress or Progress()).bar("reading", len(paths), "images") as bar:
            tokens = self.tokenizer(list(prompts)).to(device).split(BATCH_SIZE)
            text_features = torch.cat([model.encode_text(batch, normalize=True) for batch in tokens])
            results = []
            for batch in loader:
                similarity = model.encode_image(batch.to(device), normalize=True) @ text_features.T
                results.append((model.logit_scale.exp() * similarity).cpu().double().softmax(-1).numpy())
                bar.step(len(batch))
        return np.concatenate(results)


def parse_clip(spec: str = "", prompt: str = "") -> ClipModel:
    """Return the CLIP model that `--clip` and `--prompt` name; reads no weights.

    Args:
        spec: `NAME:FILE`, or `NAME:TAG` for weights that open_clip knows by name; `DEFAULT_CLIP` if empty.
        prompt: a prompt that contains {class}; `DEFAULT_PROMPT` if empty.

    Raises:
        RecipeError: if open_clip is not installed or knows no such model or weights, or the prompt has no {class}.
        WeightsError: if the file does not exist, or its name is not that of a weights file.

    >>> parse_clip("ViT-B-32:laion2b_s34b_b79k").description                          # doctest: +SKIP
    'ViT-B-32:laion2b_s34b_b79k, prompt "a photo of a {class}"'
    """
    prompt = prompt or DEFAULT_PROMPT
    if "{class}" not in prompt:
        raise RecipeError(f"The prompt '{prompt}' has no {{class}}, the placeholder of the class name. Add it.")
    try:
        import open_clip
    except ImportError:
        raise RecipeError(f"{missing_package('The variant zeroshot', 'open_clip', 'clip')}.") from None
    arch, _, weights = (spec or DEFAULT_CLIP).partition(":")
    if arch not in (names := open_clip.list_models()):
        raise RecipeError(unknown_name("CLIP model", arch, names))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights in tags:
        published = open_clip.get_pretrained_cfg(arch, weights)
        if uses_quick_gelu(published) != uses_quick_gelu(open_clip.get_model_config(arch)):
            other = f"{arch}-quickgelu" if uses_quick_gelu(published) else arch.removesuffix("-quickgelu")
            if other in names and other != arch:
                raise RecipeError(f"The weights '{weights}' belong to {other}. Pass --clip {other}:{weights}.")
    elif not weights:
        raise RecipeError(f"--clip is '{spec}'; NAME:FILE or NAME:TAG was needed, such as {DEFAULT_CLIP}.")
    elif "." in weights or Path(weights).exists():
        weights = str(weights_from_file(arch, Path(weights)).path)
    else:
        raise RecipeError(unknown_name(f"weights file or tag of {arch}", weights, tags))
    return ClipModel(arch, weights, prompt)


def class_prompts(classes: Sequence[str], prompt: str = DEFAULT_PROMPT) -> list[str]:
    """Return the prompt of each class, with underscores and hyphens in its name replaced by spaces.

    Raises:
        DataError: if two classes have the same prompt.

    >>> class_prompts(["polar_bear", "sea-lion"])
    ['a photo of a polar bear', 'a photo of a sea lion']
    """
    class_by_prompt: dict[str, str] = {}
    for name in classes:
        text = prompt.replace("{class}", " ".join(name.replace("_", " ").replace("-", " ").split()))
        if text in class_by_prompt:
            raise DataError(
                f"The classes '{class_by_prompt[text]}' and '{name}' have the same prompt, '{text}'. Rename one."
            )
        class_by_prompt[text] = name
    return list(class_by_prompt)


def load_clip(clip: ClipModel, progress: Progress | None = None) -> ClipClassifier:
    """Load the model and its weights without unpickling code; published weights come from the cache or are downloaded.

    Raises:
        WeightsError: if the weights cannot be obtained, are damaged, or do not fit.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    progress = progress or Progress()
    with quiet_root_logger():
        weights = find_clip_weights(clip, progress)
        state_dict(weights)  # raises a clear error if the file contains no tensors
        try:
            model = open_clip.create_model(
                clip.arch,
                pretrained=str(weights.path),
                force_preprocess_cfg=published_preprocessing(clip),
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(clip.arch)
        except Exception as error:  # open_clip converts weights of many formats, and downloads some tokenizers' files
            raise WeightsError(
                f"{weights.path} cannot be used as weights of {clip.arch}: {failure_reason(error)}."
            ) from None
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return ClipClassifier(model, preprocess, tokenizer, weights)


def find_clip_weights(clip: ClipModel, progress: Progress) -> Weights:
    """Return the weights from their file, from a cache, or downloaded."""
    import open_clip

    if not (published := open_clip.get_pretrained_cfg(clip.arch, clip.weights)):
        return weights_from_file(clip.arch, Path(clip.weights))
    origin = f"open_clip's {clip.weights}"
    if (cached := find_clip_in_hub_cache(published.get("hf_hub", ""))) is not None:
        progress.log(f"weights: {clip.arch}:{clip.weights} from the Hugging Face cache")
        return dataclasses.replace(weights_from_file(clip.arch, cached), origin=origin)
    progress.log(f"weights: {clip.arch}:{clip.weights} from open_clip's cache, or downloaded")
    try:
        path = open_clip.download_pretrained(published)
    except Exception as error:  # every hub client has its own exceptions, which all mean that there is no download now
        raise WeightsError(
            f"The weights {clip.weights} of {clip.arch} are in no cache and cannot be downloaded: "
            f"{failure_reason(error)}. Pass them as a file: --clip {clip.arch}:FILE."
        ) from None
    return dataclasses.replace(weights_from_file(clip.arch, Path(path)), origin=origin)


def find_clip_in_hub_cache(location: str) -> Path | None:
    """Return the cached file of `ORGANIZATION/NAME/FILE`; without FILE, the one that open_clip uses by default.

    Without a network, open_clip itself would try to connect for a minute before it looks into the cache.
    """
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = location.rpartition("/")
    names = (str(Path(file).with_suffix(".safetensors")), file) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    paths = (try_to_load_from_cache(repository, name) for name in names if repository)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def published_preprocessing(clip: ClipModel) -> dict[str, Any]:
    """Return the preprocessing of the tag's weights or, for a file, that of all the model's tags if they agree."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(clip.arch)
    settings = [
        {key: value for key, value in open_clip.get_pretrained_cfg(clip.arch, tag).items() if key in PREPROCESSING}
        for tag in ([clip.weights] if clip.weights in tags else tags)
    ]
    return settings[0] if settings and all(other == settings[0] for other in settings) else {}


def uses_quick_gelu(config: dict[str, Any]) -> bool:
    return bool(config.get("quick_gelu"))


def load_clip_batch(preprocess: Any, value_range: Sequence[float], paths: list[str]) -> Any:
    import torch

    return torch.stack([preprocess(load_image(path, value_range=value_range)) for path in paths])


def failure_reason(error: Exception) -> str:
    """Return open_clip's error message as one line; torch names what does not fit in its second line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__)
    return (reason if len(reason) <= 200 else f"{reason[:200]}...").rstrip(".")


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Keep open_clip's log off the terminal.

    It logs to the root logger; without a handler, that would be configured to write to the terminal, and stay so.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
