"""Images and the names of classes -> probabilities by a CLIP model, which was trained on none of them.

Knows open_clip (extra `clip`), images and words; knows no splits, no labels and no run folders.
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
from baseline.errors import DataError, RecipeError, WeightsError, unknown_name
from baseline.progress import Progress
from baseline.vision.weights import state_dict, weights_from_file

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["DEFAULT_CLIP", "DEFAULT_PROMPT", "ClipModel", "class_prompts", "load_clip", "parse_clip"]


DEFAULT_CLIP = "ViT-B-32:laion2b_s34b_b79k"

DEFAULT_PROMPT = "an image of a {class}"

BATCH_SIZE = 64
"""Images, or prompts, at once."""

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""Of open_clip's facts on published weights, how images are prepared for them."""


@dataclass(frozen=True)
class ClipModel:
    """Which CLIP model, and what it is asked."""

    arch: str
    """open_clip's name of it."""
    weights: str
    """open_clip's name of published weights, or a file's absolute path."""
    prompt: str
    """With {class} where the name of a class goes."""

    @property
    def words(self) -> str:
        return f'{self.arch}:{self.weights}, asked "{self.prompt}"'


@dataclass(frozen=True)
class ClipClassifier:
    """A CLIP model that is ready to read images and prompts."""

    model: Any
    preprocess: Any
    """The model's own: a PIL image -> a tensor, 3 x H x W."""
    tokenizer: Any
    weights: Weights

    def probabilities(
        self, paths: Sequence[str], prompts: Sequence[str], *, workers: int = 0, progress: Progress | None = None
    ) -> np.ndarray:
        """The softmax of each image's scaled similarities to the prompts: images x prompts, float64.

        Args:
            workers: processes that read images in the background.
        """
        import torch
        from fastai.torch_core import default_device
        from torch.utils.data import DataLoader

        device = default_device()
        model = self.model.to(device).eval()
        images: Any = list(paths)
        batches = DataLoader(
            images, BATCH_SIZE, num_workers=workers, collate_fn=partial(load_clip_batch, self.preprocess)
        )
        with torch.inference_mode(), (progress or Progress()).bar("reading", len(paths), "images") as bar:
            texts = self.tokenizer(list(prompts)).to(device).split(BATCH_SIZE)
            names = torch.cat([model.encode_text(some, normalize=True) for some in texts])
            found = []
            for batch in batches:
                similar = model.encode_image(batch.to(device), normalize=True) @ names.T
                found.append((model.logit_scale.exp() * similar).double().softmax(-1).cpu().numpy())
                bar.step(len(batch))
        return np.concatenate(found)


def parse_clip(which: str = "", prompt: str = "") -> ClipModel:
    """Understands what `--clip` and `--prompt` say; reads no weights.

    Args:
        which: `NAME:FILE`, or `NAME:TAG` for weights that open_clip knows by name; `DEFAULT_CLIP` if empty.
        prompt: with {class} in it; `DEFAULT_PROMPT` if empty.

    Raises:
        RecipeError: if open_clip is not installed, or knows no such model or weights, or the prompt has no {class}.
        WeightsError: if there is no such file, or it is no weights file by its name.

    >>> parse_clip("ViT-B-32:laion2b_s34b_b79k").words                                # doctest: +SKIP
    'ViT-B-32:laion2b_s34b_b79k, asked "an image of a {class}"'
    """
    prompt = prompt or DEFAULT_PROMPT
    if "{class}" not in prompt:
        raise RecipeError(f"The prompt '{prompt}' has no {{class}}, which the name of each class takes the place of.")
    try:
        import open_clip
    except ImportError:
        raise RecipeError("The variant zeroshot needs open_clip: pip install 'fastai-baseline[clip]'.") from None
    arch, _, weights = (which or DEFAULT_CLIP).partition(":")
    if arch not in (names := open_clip.list_models()):
        raise RecipeError(unknown_name("CLIP model", arch, names))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights in tags:
        if uses_quick_gelu(published := open_clip.get_pretrained_cfg(arch, weights)) != uses_quick_gelu(
            open_clip.get_model_config(arch)
        ):
            other = f"{arch}-quickgelu" if uses_quick_gelu(published) else arch.removesuffix("-quickgelu")
            if other in names and other != arch:
                raise RecipeError(f"The weights '{weights}' are those of {other}. Give --clip {other}:{weights}.")
    elif not weights:
        raise RecipeError(f"--clip is '{which}'; NAME:FILE or NAME:TAG was needed, such as {DEFAULT_CLIP}.")
    elif "." in weights or Path(weights).exists():
        weights = str(weights_from_file(arch, Path(weights)).path)
    else:
        raise RecipeError(unknown_name(f"weights file or tag of {arch}", weights, tags))
    return ClipModel(arch, weights, prompt)


def class_prompts(classes: Sequence[str], prompt: str = DEFAULT_PROMPT) -> list[str]:
    """What each class is called in the prompt: its name, underscores and hyphens as spaces.

    Raises:
        DataError: if two classes have the same prompt.

    >>> class_prompts(["polar_bear", "sea-lion"])
    ['an image of a polar bear', 'an image of a sea lion']
    """
    made: dict[str, str] = {}
    for name in classes:
        words = prompt.replace("{class}", " ".join(name.replace("_", " ").replace("-", " ").split()))
        if words in made:
            raise DataError(f"The classes '{made[words]}' and '{name}' have the same prompt, '{words}'. Rename one.")
        made[words] = name
    return list(made)


def load_clip(clip: ClipModel, progress: Progress | None = None) -> ClipClassifier:
    """The model with its weights, read without unpickling code; those of a tag from open_clip's cache, or downloaded.

    Raises:
        WeightsError: if they cannot be had, are damaged, or do not fit.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    progress = progress or Progress()
    with quiet_root_logger():
        weights = find_clip_weights(clip, progress)
        state_dict(weights)  # says what is wrong with a file that holds no tensors
        try:
            model = open_clip.create_model(
                clip.arch,
                pretrained=str(weights.path),
                force_preprocess_cfg=published_preprocessing(clip),
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(clip.arch)
        except Exception as error:  # open_clip converts weights of many kinds, and fetches what some tokenizers need
            raise WeightsError(
                f"{weights.path} cannot be used as weights of {clip.arch}: {failure_reason(error)}."
            ) from None
    seen = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return ClipClassifier(model, seen, tokenizer, weights)


def find_clip_weights(clip: ClipModel, progress: Progress) -> Weights:
    import open_clip

    if not (published := open_clip.get_pretrained_cfg(clip.arch, clip.weights)):
        return weights_from_file(clip.arch, Path(clip.weights))
    origin = f"open_clip's {clip.weights}"
    if (cached := find_in_hub_cache(published.get("hf_hub", ""))) is not None:
        progress.log(f"weights: {clip.arch}:{clip.weights} from the Hugging Face cache")
        return dataclasses.replace(weights_from_file(clip.arch, cached), origin=origin)
    progress.log(f"weights: {clip.arch}:{clip.weights} from open_clip's cache, or downloaded")
    try:
        path = open_clip.download_pretrained(published)
    except Exception as error:  # every hub client has its own kinds; all of them mean: not to be had now
        raise WeightsError(
            f"The weights {clip.weights} of {clip.arch} are in no cache here and cannot be downloaded: {failure_reason(error)}. "
            f"Give a file of them: --clip {clip.arch}:FILE."
        ) from None
    return dataclasses.replace(weights_from_file(clip.arch, Path(path)), origin=origin)


def find_in_hub_cache(place: str) -> Path | None:
    """The file of `ORGANISATION/NAME/FILE`, without FILE open_clip's usual one, where it was downloaded before.

    Without a network open_clip itself would ask for a minute before it looks there.
    """
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = place.rpartition("/")
    names = (str(Path(file).with_suffix(".safetensors")), file) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    found = (try_to_load_from_cache(repository, name) for name in names if repository)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def published_preprocessing(clip: ClipModel) -> dict[str, Any]:
    """How images were prepared for the weights: as for those of the tag, or as for all tags of the model, if alike."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(clip.arch)
    every = [
        {key: value for key, value in open_clip.get_pretrained_cfg(clip.arch, tag).items() if key in PREPROCESSING}
        for tag in ([clip.weights] if clip.weights in tags else tags)
    ]
    return every[0] if every and all(each == every[0] for each in every) else {}


def uses_quick_gelu(facts: dict[str, Any]) -> bool:
    return bool(facts.get("quick_gelu"))


def load_clip_batch(preprocess: Any, paths: list[str]) -> Any:
    import torch

    return torch.stack([preprocess(load_image(path)) for path in paths])


def failure_reason(error: Exception) -> str:
    """What open_clip says went wrong, in one line; torch says what does not fit in its second."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__)
    return (told if len(told) <= 200 else f"{told[:200]}...").rstrip(".")


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """open_clip logs to the root logger, which would otherwise write to the terminal and stay set up so."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
