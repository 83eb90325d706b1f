"""Zero-shot classification agrees with open_clip itself, on a small model with random weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from PIL import Image
from safetensors.torch import save_file

import baseline
from baseline import Progress, run_ladder
from baseline.errors import DataError, OutputError, RecipeError, WeightsError, install_command
from baseline.experiments.ladder import Ladder
from baseline.experiments.zeroshot import DEFAULT_CLIP, ClipModel, class_prompts, load_clip, parse_clip
from baseline.runs.folder import read_manifest, read_predictions

QUIET = Progress()
PROMPT = "a drawing of {class} insects"


def test_a_missing_extra_is_one_line_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; sys.modules['open_clip'] = None\n"
        "from baseline.cli.app import main\n"
        "sys.argv = ['baseline', 'ladder', 'images', '--variants', 'zeroshot']; main()"
    )
    (tmp_path / "images").mkdir()
    result = call(code=code)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"needs open_clip: {install_command('clip')}." in result.stderr
    assert not (tmp_path / "runs").exists()


def test_class_names_become_prompts_and_equal_prompts_are_rejected() -> None:
    names = ["polar_bear", "sea-lion", "T-shirt_/_top", "{class}"]
    assert class_prompts(names, "a {class}, {class}")[:2] == ["a polar bear, polar bear", "a sea lion, sea lion"]
    assert class_prompts(names)[2:] == ["a photo of a T shirt / top", "a photo of a {class}"]
    with pytest.raises(DataError, match=r"'sea-lion' and 'sea_lion' .* 'a photo of a sea lion'"):
        class_prompts(["sea-lion", "ant", "sea_lion"])
    with pytest.raises(RecipeError, match=r"'an image' has no \{class\}"):
        parse_clip(DEFAULT_CLIP, "an image")


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """open_clip with one more model, small enough for a test."""
    module = pytest.importorskip("open_clip", reason="open_clip is not installed: the extra `clip`")
    facts = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    config = tmp_path_factory.mktemp("models") / "tiny-clip.json"
    config.write_text(json.dumps(facts))
    module.add_model_config(config)
    return module


@pytest.fixture(scope="module")
def weights(open_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(3)
    save_file(open_clip.create_model("tiny-clip").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def ladder(images: Path, small: baseline.Recipe, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASELINE_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("runs") / "ladder"
        return run_ladder(images, small, variants=["majority", "logistic"], clip=f"tiny-clip:{weights}", prompt=PROMPT,
                           out=out, progress=QUIET)  # fmt: skip


def reference_probabilities(open_clip: Any, weights: Path, paths: list[str], prompts: list[str]) -> np.ndarray:
    """Return the probabilities from open_clip's own interface, image by image."""
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(weights))
    model.eval()
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("tiny-clip")(prompts))
        texts /= texts.norm(dim=-1, keepdim=True)
        rows = []
        for path in paths:
            features = model.encode_image(preprocess(Image.open(path)).unsqueeze(0))
            rows.append(
                (model.logit_scale.exp() * features / features.norm(dim=-1, keepdim=True) @ texts.T).softmax(-1)[0]
            )
    return torch.stack(rows).numpy()


def test_its_run_folder_contains_what_open_clip_computes(open_clip: Any, weights: Path, ladder: Ladder) -> None:
    run = ladder.folder / "zeroshot"
    predictions, other = read_predictions(run), read_predictions(ladder.folder / "logistic")
    pd.testing.assert_frame_equal(predictions[["path", "label", "split"]], other[["path", "label", "split"]])
    prompts = ["a drawing of ants insects", "a drawing of bees insects"]
    expected = reference_probabilities(open_clip, weights, predictions["path"].tolist(), prompts)
    np.testing.assert_allclose(predictions[["p_ants", "p_bees"]], expected, atol=1e-5)
    assert predictions["p_ants"].std() > 0.001, "the images make no difference"
    assert predictions["predicted"].tolist() == [("ants", "bees")[at] for at in expected.argmax(1)]
    manifest = read_manifest(run)
    assert manifest["weights"]["arch"] == "tiny-clip" and manifest["weights"]["path"] == str(weights)
    assert manifest["stages"][0]["why"] == f'tiny-clip:{weights}, prompt "{PROMPT}"'


def test_it_is_a_variants_trained_on_nothing(ladder: Ladder) -> None:
    row = ladder.table.set_index("variant").loc["zeroshot"]
    assert ladder.table["variant"].tolist() == ["majority", "logistic", "zeroshot"]
    assert row["parameters"] == 0 and 0 <= row["seconds"] < 60 and row["against"] == "logistic" and row["arch"] == ""
    assert row["words"] == "zero-shot classification with CLIP, tiny-clip"
    assert any(line.startswith("Zero-shot classification changes accuracy by ") for line in ladder.sentences)
    assert row["words"] in (ladder.folder / "ladder.html").read_text()
    result = baseline.compare_runs([ladder.folder / "logistic", ladder.folder / "zeroshot"])
    assert result.table["shared"].iloc[1] == row["images"]


def test_alone_it_is_recommended_without_training(
    images: Path, small: baseline.Recipe, weights: Path, tmp_path: Path
) -> None:
    clip = f"tiny-clip:{weights}"
    result = run_ladder(images, small, variants=["zeroshot"], clip=clip, out=tmp_path / "one", progress=QUIET)
    assert result.sentences[0].startswith("Recommended: zero-shot classification with CLIP, tiny-clip, ")
    assert "without training, in " in result.sentences[0] and len(result.sentences) == 1
    before = (tmp_path / "one/zeroshot/manifest.json").stat().st_mtime_ns
    again = {"variants": ["zeroshot"], "out": tmp_path / "one", "resume": True, "progress": QUIET}
    run_ladder(images, small, clip=clip, **again)
    assert (tmp_path / "one/zeroshot/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"was made with .*an image of .*now .*a sketch"):
        run_ladder(images, small, clip=clip, prompt="a sketch of {class}", **again)


def test_batches_and_workers_do_not_change_results(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_clip(ClipModel("tiny-clip", str(weights), PROMPT))
    paths, prompts = [str(path) for path in sorted(images.rglob("*.jpg"))[:11]], ["ant", "bee", "wasp", "fly", "moth"]
    expected = classifier.probabilities(paths, prompts)
    monkeypatch.setattr("baseline.experiments.zeroshot.BATCH_SIZE", 4)
    np.testing.assert_allclose(classifier.probabilities(paths, prompts, workers=1), expected, atol=1e-6)
    assert expected.shape == (11, 5) and np.allclose(expected.sum(1), 1, atol=1e-12)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        classifier.probabilities(paths, [prompts[at] for at in order]), expected[:, order], atol=1e-6
    )


def test_images_are_preprocessed_as_for_the_published_weights(
    open_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from open_clip.pretrained import _PRETRAINED

    published = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.25), "interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(_PRETRAINED, "tiny-clip", {"mine": {"hf_hub": "nobody/none/", **published}})
    save_file(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "w.safetensors")
    tensor = load_clip(ClipModel("tiny-clip", str(tmp_path / "w.safetensors"), PROMPT)).preprocess(
        Image.new("RGB", (90, 60))
    )
    assert tensor.shape == (3, 48, 48)
    np.testing.assert_allclose(tensor[:, 0, 0], [-1, -0.8, -1.2], rtol=1e-6)
    with monkeypatch.context() as patch:  # what a download would have left there
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        patch.setattr(open_clip, "download_pretrained", None)
        cached = tmp_path / "models--nobody--none"
        (cached / "snapshots/0a").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text("0a")
        (tmp_path / "w.safetensors").rename(cached / "blob")
        (cached / "snapshots/0a/open_clip_model.safetensors").symlink_to(cached / "blob")
        classifier = load_clip(ClipModel("tiny-clip", "mine", PROMPT))
    assert (
        classifier.weights.origin == "open_clip's mine"
        and classifier.preprocess(Image.new("RGB", (9, 6)))[2, 0, 0] < -1.1
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"mine of tiny-clip are in no cache .* --clip tiny-clip:FILE"):
        load_clip(ClipModel("tiny-clip", "mine", PROMPT))


def test_unusable_weights_are_reported_in_one_line(
    open_clip: Any, weights: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"state_dict": {"x": torch.ones(2)}, "more": Malicious()}, tmp_path / "evil.bin")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    save_file({"visual.proj": torch.ones(3, 2)}, tmp_path / "other.safetensors")
    for name, message in {
        "evil.pt": "it was not run",
        "evil.bin": "it was not run",
        "cut.safetensors": "truncated or damaged",
        "other.safetensors": "cannot be used as weights of tiny-clip: Missing key",
    }.items():
        with pytest.raises(WeightsError, match=message) as raised:
            load_clip(parse_clip(f"tiny-clip:{tmp_path / name}"))
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert not (tmp_path / "ran").exists()
    assert capfd.readouterr().err == "", "open_clip's own log"
    with pytest.raises(WeightsError, match="Missing key"):
        run_ladder(images, clip=f"tiny-clip:{tmp_path / 'other.safetensors'}", out=tmp_path / "out", progress=QUIET)
    assert not list((tmp_path / "out").rglob("manifest.json")), "something was trained before"


def test_impossible_requests_are_rejected(open_clip: Any, weights: Path, images: Path, tmp_path: Path) -> None:
    for spec, message in {
        "ViT-B32:x": r"CLIP model 'ViT-B32'. Did you mean 'ViT-B-32'",
        "ViT-B-32": r"NAME:TAG was needed",
        "ViT-B-32:laion2b_s34b_b79": r"Did you mean 'laion2b_s34b_b79k'",
        "ViT-B-32:openai": r"Pass --clip ViT-B-32-quickgelu:openai",
    }.items():
        with pytest.raises(RecipeError, match=message):
            parse_clip(spec)
    with pytest.raises(WeightsError, match="There is no weights file"):
        parse_clip("ViT-B-32:no/such.safetensors")
    assert parse_clip() == ClipModel("ViT-B-32", "laion2b_s34b_b79k", "a photo of a {class}")
    with pytest.raises(RecipeError, match="--variants, or give --clip"):
        run_ladder(images, prompt="a {class}", out=tmp_path / "no", progress=QUIET)
    rows = [f"{path},{path.parent.name} small" for path in sorted(images.rglob("*.jpg"))]
    (tmp_path / "many.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(RecipeError, match="one label per image"):
        run_ladder(tmp_path / "many.csv", task="multilabel", variants=["majority", "zeroshot"], out=tmp_path / "many",
                    clip=f"tiny-clip:{weights}", progress=QUIET)  # fmt: skip
