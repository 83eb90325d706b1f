"""DataLoaders: upright RGB images, the same pixels from cache, memory and disk, and fastai's own methods still work."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.transforms import Normalize
from PIL import Image

import baseline
from baseline.data.image import load_image, resize_image
from baseline.vision import augment, decoded
from baseline.vision.dataloaders import split_loader

MEAN, STD = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
"""What the small body normalizes images with."""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_image_mode_is_converted_to_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (6, 4), (200, 10, 10)).convert("L" if mode == "I;16" else mode if mode != "PA" else "P")
    image = image.convert(mode) if mode in ("PA", "I;16") and image.mode != mode else image
    opened = load_image(image)
    assert opened.mode == "RGB" and opened.size == (6, 4)


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    buffer = BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert load_image(buffer.getvalue()).size == (20, 40)


def test_bytes_paths_arrays_and_images_load_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        pixels,
        Image.fromarray(pixels),
    ]
    for form in forms:
        assert np.array_equal(np.asarray(load_image(form)), pixels)


def test_jpeg_decoded_at_reduced_scale_looks_the_same() -> None:
    ramp = np.linspace(0, 255, 1600 * 1200).reshape(1200, 1600).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(np.stack([ramp, ramp.T.copy().reshape(1200, 1600), 255 - ramp], -1)).save(
        buffer, "JPEG", quality=95
    )
    full = resize_image(load_image(buffer.getvalue()), 64, "squish")
    fast = resize_image(load_image(buffer.getvalue(), 64), 64, "squish")
    assert np.abs(np.asarray(full, int) - np.asarray(fast, int)).mean() < 4


@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_images_are_resized_to_squares(resize: str) -> None:
    square = resize_image(Image.new("RGB", (90, 30), "white"), 32, resize)
    assert square.size == (32, 32)
    black = (np.asarray(square) == 0).all(-1).mean()
    assert (black > 0.5) if resize == "pad" else (black == 0)


def test_batches_are_normalized_and_have_the_right_labels(learn: object, settled: tuple) -> None:
    recipe, table = settled
    images, labels = learn.dls.valid.one_batch()
    assert images.shape[1:] == (3, 48, 48) and images.dtype == torch.float32
    assert list(learn.dls.vocab) == ["ants", "bees"]
    rows = table[table["split"] == "valid"]
    assert [learn.dls.vocab[n] for n in labels] == list(rows["label"])[: len(labels)]
    raw = (
        np.asarray(resize_image(load_image(rows.iloc[0]["path"], 48), 48, recipe.model.resize)).transpose(2, 0, 1) / 255
    )
    assert np.allclose(images[0].numpy(), (raw - MEAN) / STD, atol=1e-5)
    assert any(isinstance(step, Normalize) for step in learn.dls.valid.after_batch.fs)


def test_cache_memory_and_disk_give_the_same_pixels(settled: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, table = settled
    uncached = recipe.changed(cache_gb=0)
    variants = [baseline.dataloaders(table, recipe)]
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "decode_images", None)
        variants.append(baseline.dataloaders(table, recipe))
    variants.append(baseline.dataloaders(table, uncached))
    monkeypatch.setattr(decoded, "MEMORY_FRACTION", 0)
    variants.append(baseline.dataloaders(table, uncached))
    assert [dls.decoded is None for dls in variants] == [False, False, False, True]
    for split in ("train", "valid", "test"):
        for batches in zip(*(split_loader(dls, table, split) for dls in variants), strict=True):
            for images, labels in batches[1:]:
                assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])


def test_training_batches_are_shuffled_augmented_and_full(learn: object) -> None:
    first, second = ([x.clone() for x, _ in learn.dls.train] for _ in range(2))
    assert not torch.equal(first[0], second[0])
    assert all(len(batch) == learn.dls.train.bs for batch in first)


def test_half_of_the_training_images_are_flipped_and_nothing_else(settled: tuple) -> None:
    flip_only = settled[0].changed(
        augment={"flip": True, "rotate": 0, "zoom": 1, "lighting": 0, "warp": 0}, batch_size=31
    )
    dls = baseline.dataloaders(settled[1], flip_only)
    rows = settled[1][settled[1]["split"] == "train"]
    plain = torch.cat([images for images, _ in split_loader(dls, rows, "train")]).as_subclass(torch.Tensor)
    sums, flipped = plain.flatten(1).sum(1), []
    for images, _ in (batch for _ in range(20) for batch in dls.train):
        for image in images.as_subclass(torch.Tensor):
            original = plain[(sums - image.sum()).abs().argmin()]
            assert torch.equal(image, original) or torch.equal(image, original.flip(-1))
            flipped.append(not torch.equal(image, original))
    assert 0.4 < np.mean(flipped) < 0.6


def test_augmentation_does_not_touch_validation_images(learn: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "grid_sample", None)
    assert len(learn.dls.valid.one_batch()[0])
    with pytest.raises(TypeError):
        learn.dls.train.one_batch()


def test_images_are_decoded_larger_for_random_crops(settled: tuple, monkeypatch: Any) -> None:
    recipe = settled[0].changed(augment={"crop": 0.5, "rotate": 5.0})
    assert recipe.decoded_size == 68
    for gb in (1, 0):
        dls = baseline.dataloaders(settled[1], recipe.changed(cache_gb=gb))
        monkeypatch.setattr(decoded, "MEMORY_FRACTION", 0)
        assert dls.train.one_batch()[0].shape[-1] == dls.valid.one_batch()[0].shape[-1] == 48
        loader = split_loader(dls, settled[1], "valid")
        large = resize_image(
            load_image(settled[1].query("split == 'valid'")["path"].iloc[0], 68), 68, recipe.model.resize
        )
        pixels = torch.from_numpy(((np.array(large).transpose(2, 0, 1)[None] / 255 - MEAN) / STD).astype(np.float32))
        assert torch.allclose(
            next(iter(loader))[0][0].as_subclass(torch.Tensor), augment.resize_batch(pixels, 48)[0], atol=1e-5
        )
    plain = settled[0].changed(augment={"crop": 1.0})
    assert plain.decoded_size == 48


def test_batches_are_channels_last(learn: object) -> None:
    assert learn.dls.valid.one_batch()[0].is_contiguous(memory_format=torch.channels_last)


def test_fastai_methods_still_work(learn: object, images: Path) -> None:
    learn.dls.train.show_batch(max_n=2, show=False)
    name, _, probabilities = learn.predict(images / "ants" / "00.jpg")
    assert name in ("ants", "bees") and probabilities.sum() == pytest.approx(1, abs=1e-5)
    file = images / "ants" / "00.jpg"
    for form in (str(file), file.read_bytes(), Image.open(file)):
        assert torch.allclose(learn.predict(form)[2], probabilities, atol=1e-6)
    assert learn.get_preds()[0].shape == (len(learn.dls.valid_ds), 2)


def test_labels_can_have_names_of_table_columns(body: dict[str, str], tmp_path: Path) -> None:
    rows = []
    for shade, label in enumerate(("path", "label", "loss")):
        for number in range(6):
            Image.new("RGB", (16, 16), (40 * number, 90 * shade, 9)).save(tmp_path / f"{label}{number}.png")
            rows.append({"path": str(tmp_path / f"{label}{number}.png"), "label": label})
    recipe = baseline.Recipe().changed(image_size=32, stages=(baseline.Stage("head", 1, 1e-3, augment=False),), **body)
    done = baseline.make_baseline(pd.DataFrame(rows), recipe, out=tmp_path / "run", progress=baseline.Progress())
    assert {"p_path", "p_label", "p_loss"} <= set(done.predictions)
