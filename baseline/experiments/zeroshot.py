"""Photos and the names of classes -> probabilities by a CLIP model, which was trained on none of them.

Knows open_clip (extra `clip`), photos and words; knows no splits, no labels and no run folders.
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

from baseline.data.image import open_photo
from baseline.errors import DataError, RecipeError, WeightsError, unknown
from baseline.progress import Show
from baseline.vision.weights import given_weights, state_dict

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["CLIP", "PROMPT", "Clip", "clip_of", "prompts_of", "reader"]


CLIP = "ViT-B-32:laion2b_s34b_b79k"

PROMPT = "a photo of a {class}"

BATCH = 64
"""Photos, or prompts, at once."""

PREPARED = ("mean", "std", "interpolation", "resize_mode")
"""Of open_clip's facts on published weights, how photos are prepared for them."""


@dataclass(frozen=True)
class Clip:
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
class Reader:
    """A CLIP model that is ready to read photos and prompts."""

    model: Any
    preprocess: Any
    """The model's own: a PIL photo -> a tensor, 3 x H x W."""
    tokenizer: Any
    weights: Weights

    def probabilities(
        self, paths: Sequence[str], prompts: Sequence[str], *, workers: int = 0, show: Show | None = None
    ) -> np.ndarray:
        """The softmax of each photo's scaled similarities to the prompts: photos x prompts, float64.

        Args:
            workers: processes that read photos in the background.
        """
        import torch
        from fastai.torch_core import default_device
        from torch.utils.data import DataLoader

        device = default_device()
        model = self.model.to(device).eval()
        photos: Any = list(paths)
        batches = DataLoader(photos, BATCH, num_workers=workers, collate_fn=partial(_stacked, self.preprocess))
        with torch.inference_mode(), (show or Show()).bar("reading", len(paths), "photos") as bar:
            texts = self.tokenizer(list(prompts)).to(device).split(BATCH)
            names = torch.cat([model.encode_text(some, normalize=True) for some in texts])
            found = []
            for batch in batches:
                similar = model.encode_image(batch.to(device), normalize=True) @ names.T
                found.append((model.logit_scale.exp() * similar).double().softmax(-1).cpu().numpy())
                bar.step(len(batch))
        return np.concatenate(found)


def clip_of(which: str = "", prompt: str = "") -> Clip:
    """Understands what `--clip` and `--prompt` say; reads no weights.

    Args:
        which: `NAME:FILE`, or `NAME:TAG` for weights that open_clip knows by name; `CLIP` if empty.
        prompt: with {class} in it; `PROMPT` if empty.

    Raises:
        RecipeError: if open_clip is not installed, or knows no such model or weights, or the prompt has no {class}.
        WeightsError: if there is no such file, or it is no weights file by its name.

    >>> clip_of("ViT-B-32:laion2b_s34b_b79k").words                                # doctest: +SKIP
    'ViT-B-32:laion2b_s34b_b79k, asked "a photo of a {class}"'
    """
    prompt = prompt or PROMPT
    if "{class}" not in prompt:
        raise RecipeError(f"The prompt '{prompt}' has no {{class}}, which the name of each class takes the place of.")
    try:
        import open_clip
    except ImportError:
        raise RecipeError("The rung zeroshot needs open_clip: pip install 'fastai-baseline[clip]'.") from None
    arch, _, weights = (which or CLIP).partition(":")
    if arch not in (names := open_clip.list_models()):
        raise RecipeError(unknown("CLIP model", arch, names))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights in tags:
        if _quick(published := open_clip.get_pretrained_cfg(arch, weights)) != _quick(open_clip.get_model_config(arch)):
            other = f"{arch}-quickgelu" if _quick(published) else arch.removesuffix("-quickgelu")
            if other in names and other != arch:
                raise RecipeError(f"The weights '{weights}' are those of {other}. Give --clip {other}:{weights}.")
    elif not weights:
        raise RecipeError(f"--clip is '{which}'; NAME:FILE or NAME:TAG was needed, such as {CLIP}.")
    elif "." in weights or Path(weights).exists():
        weights = str(given_weights(arch, Path(weights)).path)
    else:
        raise RecipeError(unknown(f"weights file or tag of {arch}", weights, tags))
    return Clip(arch, weights, prompt)


def prompts_of(classes: Sequence[str], prompt: str = PROMPT) -> list[str]:
    """What each class is called in the prompt: its name, underscores and hyphens as spaces.

    Raises:
        DataError: if two classes have the same prompt.

    >>> prompts_of(["polar_bear", "sea-lion"])
    ['a photo of a polar bear', 'a photo of a sea lion']
    """
    made: dict[str, str] = {}
    for name in classes:
        words = prompt.replace("{class}", " ".join(name.replace("_", " ").replace("-", " ").split()))
        if words in made:
            raise DataError(f"The classes '{made[words]}' and '{name}' have the same prompt, '{words}'. Rename one.")
        made[words] = name
    return list(made)


def reader(clip: Clip, show: Show | None = None) -> Reader:
    """The model with its weights, read without unpickling code; those of a tag from open_clip's cache, or downloaded.

    Raises:
        WeightsError: if they cannot be had, are damaged, or do not fit.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    show = show or Show()
    with _hushed():
        weights = _weights(clip, show)
        state_dict(weights)  # says what is wrong with a file that holds no tensors
        try:
            model = open_clip.create_model(
                clip.arch, pretrained=str(weights.path), force_preprocess_cfg=_published(clip), weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(clip.arch)
        except Exception as error:  # open_clip converts weights of many kinds, and fetches what some tokenizers need
            raise WeightsError(f"{weights.path} cannot be used as weights of {clip.arch}: {_why(error)}.") from None
    seen = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return Reader(model, seen, tokenizer, weights)


def _weights(clip: Clip, show: Show) -> Weights:
    import open_clip

    if not (published := open_clip.get_pretrained_cfg(clip.arch, clip.weights)):
        return given_weights(clip.arch, Path(clip.weights))
    origin = f"open_clip's {clip.weights}"
    if (cached := _hugging_face_cached(published.get("hf_hub", ""))) is not None:
        show.say(f"weights: {clip.arch}:{clip.weights} from the Hugging Face cache")
        return dataclasses.replace(given_weights(clip.arch, cached), origin=origin)
    show.say(f"weights: {clip.arch}:{clip.weights} from open_clip's cache, or downloaded")
    try:
        path = open_clip.download_pretrained(published)
    except Exception as error:  # every hub client has its own kinds; all of them mean: not to be had now
        raise WeightsError(
            f"The weights {clip.weights} of {clip.arch} are in no cache here and cannot be downloaded: {_why(error)}. "
            f"Give a file of them: --clip {clip.arch}:FILE."
        ) from None
    return dataclasses.replace(given_weights(clip.arch, Path(path)), origin=origin)


def _hugging_face_cached(place: str) -> Path | None:
    """The file of `ORGANISATION/NAME/FILE`, without FILE open_clip's usual one, where it was downloaded before.

    Without a network open_clip itself would ask for a minute before it looks there.
    """
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = place.rpartition("/")
    names = (str(Path(file).with_suffix(".safetensors")), file) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    found = (try_to_load_from_cache(repository, name) for name in names if repository)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _published(clip: Clip) -> dict[str, Any]:
    """How photos were prepared for the weights: as for those of the tag, or as for all tags of the model, if alike."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(clip.arch)
    every = [
        {key: value for key, value in open_clip.get_pretrained_cfg(clip.arch, tag).items() if key in PREPARED}
        for tag in ([clip.weights] if clip.weights in tags else tags)
    ]
    return every[0] if every and all(each == every[0] for each in every) else {}


def _quick(facts: dict[str, Any]) -> bool:
    return bool(facts.get("quick_gelu"))


def _stacked(preprocess: Any, paths: list[str]) -> Any:
    import torch

    return torch.stack([preprocess(open_photo(path)) for path in paths])


def _why(error: Exception) -> str:
    """What open_clip says went wrong, in one line; torch says what does not fit in its second."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__)
    return (told if len(told) <= 200 else f"{told[:200]}...").rstrip(".")


@contextmanager
def _hushed() -> Iterator[None]:
    """open_clip logs to the root logger, which would otherwise write to the terminal and stay set up so."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
