"""Zero-shot classification: open_clip's own numbers, with a small model of random weights."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import baseline
from baseline import DataError, OutputError, Progress, RecipeError, WeightsError, run_ladder
from baseline.experiments.zeroshot import DEFAULT_CLIP, ClipModel, class_prompts, load_clip, parse_clip
from baseline.runs.folder import read_manifest, read_predictions

QUIET = Progress()
PROMPT = "a drawing of {class} insects"


def test_a_missing_extra_is_one_line_with_its_name(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['open_clip'] = None\n"
        "from baseline.cli.app import main\n"
        "sys.argv = ['baseline', 'ladder', 'images', '--variants', 'zeroshot']; main()"
    )
    (tmp_path / "images").mkdir()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 2 and said.stderr.count("\n") == 1
    assert "pip install 'fastai-baseline[clip]'" in said.stderr
    assert not (tmp_path / "runs").exists()


def test_names_become_words_and_two_that_become_the_same_are_refused() -> None:
    names = ["polar_bear", "sea-lion", "T-shirt_/_top", "{class}"]
    assert class_prompts(names, "a {class}, {class}")[:2] == ["a polar bear, polar bear", "a sea lion, sea lion"]
    assert class_prompts(names)[2:] == ["an image of a T shirt / top", "an image of a {class}"]
    with pytest.raises(DataError, match=r"'sea-lion' and 'sea_lion' .* 'an image of a sea lion'"):
        class_prompts(["sea-lion", "ant", "sea_lion"])
    with pytest.raises(RecipeError, match=r"'an image' has no \{class\}"):
        parse_clip(DEFAULT_CLIP, "an image")


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """open_clip with one more model, small enough for a test."""
    found = pytest.importorskip("open_clip", reason="open_clip is not installed: the extra `clip`")
    facts = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    config = tmp_path_factory.mktemp("models") / "tiny-clip.json"
    config.write_text(json.dumps(facts))
    found.add_model_config(config)
    return found


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


def direct(open_clip: Any, weights: Path, paths: list[str], prompts: list[str]) -> np.ndarray:
    """The same by open_clip's own interface, image by image."""
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(weights))
    model.eval()
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("tiny-clip")(prompts))
        texts /= texts.norm(dim=-1, keepdim=True)
        rows = []
        for path in paths:
            seen = model.encode_image(preprocess(Image.open(path)).unsqueeze(0))
            rows.append((model.logit_scale.exp() * seen / seen.norm(dim=-1, keepdim=True) @ texts.T).softmax(-1)[0])
    return torch.stack(rows).numpy()


def test_its_run_folder_holds_what_open_clip_computes(open_clip: Any, weights: Path, ladder: baseline.Ladder) -> None:
    run = ladder.folder / "zeroshot"
    told, other = read_predictions(run), read_predictions(ladder.folder / "logistic")
    pd.testing.assert_frame_equal(told[["path", "label", "split"]], other[["path", "label", "split"]])
    prompts = ["a drawing of ants insects", "a drawing of bees insects"]
    wanted = direct(open_clip, weights, told["path"].tolist(), prompts)
    np.testing.assert_allclose(told[["p_ants", "p_bees"]], wanted, atol=1e-5)
    assert told["p_ants"].std() > 0.001, "the images make no difference"
    assert told["predicted"].tolist() == [("ants", "bees")[at] for at in wanted.argmax(1)]
    manifest = read_manifest(run)
    assert manifest["weights"]["arch"] == "tiny-clip" and manifest["weights"]["path"] == str(weights)
    assert manifest["stages"][0]["why"] == f'tiny-clip:{weights}, prompt "{PROMPT}"'


def test_it_is_a_variants_trained_on_nothing(ladder: baseline.Ladder) -> None:
    row = ladder.table.set_index("variant").loc["zeroshot"]
    assert ladder.table["variant"].tolist() == ["majority", "logistic", "zeroshot"]
    assert row["parameters"] == 0 and 0 <= row["seconds"] < 60 and row["against"] == "logistic" and row["arch"] == ""
    assert row["words"] == "zero-shot classification with CLIP, tiny-clip"
    assert any(line.startswith("Zero-shot classification changes accuracy by ") for line in ladder.sentences)
    assert row["words"] in (ladder.folder / "ladder.html").read_text()
    found = baseline.compare_runs([ladder.folder / "logistic", ladder.folder / "zeroshot"])
    assert found.table["shared"].iloc[1] == row["images"]


def test_alone_it_is_recommended_as_what_needs_no_training(
    images: Path, small: baseline.Recipe, weights: Path, tmp_path: Path
) -> None:
    clip = f"tiny-clip:{weights}"
    found = run_ladder(images, small, variants=["zeroshot"], clip=clip, out=tmp_path / "one", progress=QUIET)
    assert found.sentences[0].startswith("Recommended: zero-shot classification with CLIP, tiny-clip, ")
    assert "without training, in " in found.sentences[0] and len(found.sentences) == 1
    before = (tmp_path / "one/zeroshot/manifest.json").stat().st_mtime_ns
    again = {"variants": ["zeroshot"], "out": tmp_path / "one", "resume": True, "progress": QUIET}
    run_ladder(images, small, clip=clip, **again)
    assert (tmp_path / "one/zeroshot/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"was made with .*an image of .*now .*a sketch"):
        run_ladder(images, small, clip=clip, prompt="a sketch of {class}", **again)


def test_batches_and_workers_change_no_number(images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = load_clip(ClipModel("tiny-clip", str(weights), PROMPT))
    paths, prompts = [str(path) for path in sorted(images.rglob("*.jpg"))[:11]], ["ant", "bee", "wasp", "fly", "moth"]
    whole = reads.probabilities(paths, prompts)
    monkeypatch.setattr("baseline.experiments.zeroshot.BATCH_SIZE", 4)
    np.testing.assert_allclose(reads.probabilities(paths, prompts, workers=1), whole, atol=1e-6)
    assert whole.shape == (11, 5) and np.allclose(whole.sum(1), 1, atol=1e-12)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(reads.probabilities(paths, [prompts[at] for at in order]), whole[:, order], atol=1e-6)


def test_images_are_prepared_as_the_published_weights_want_it(
    open_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from open_clip.pretrained import _PRETRAINED

    published = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.25), "interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(_PRETRAINED, "tiny-clip", {"mine": {"hf_hub": "nobody/none/", **published}})
    save_file(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "w.safetensors")
    seen = load_clip(ClipModel("tiny-clip", str(tmp_path / "w.safetensors"), PROMPT)).preprocess(
        Image.new("RGB", (90, 60))
    )
    assert seen.shape == (3, 48, 48)
    np.testing.assert_allclose(seen[:, 0, 0], [-1, -0.8, -1.2], rtol=1e-6)
    with monkeypatch.context() as patch:  # what a download would have left there
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        patch.setattr(open_clip, "download_pretrained", None)
        cached = tmp_path / "models--nobody--none"
        (cached / "snapshots/0a").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text("0a")
        (tmp_path / "w.safetensors").rename(cached / "blob")
        (cached / "snapshots/0a/open_clip_model.safetensors").symlink_to(cached / "blob")
        found = load_clip(ClipModel("tiny-clip", "mine", PROMPT))
    assert found.weights.origin == "open_clip's mine" and found.preprocess(Image.new("RGB", (9, 6)))[2, 0, 0] < -1.1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"mine of tiny-clip are in no cache .* --clip tiny-clip:FILE"):
        load_clip(ClipModel("tiny-clip", "mine", PROMPT))


def test_what_does_not_fit_is_one_line(
    open_clip: Any, weights: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": {"x": torch.ones(2)}, "more": Evil()}, tmp_path / "evil.bin")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    save_file({"visual.proj": torch.ones(3, 2)}, tmp_path / "other.safetensors")
    for name, words in {
        "evil.pt": "it was not run",
        "evil.bin": "it was not run",
        "cut.safetensors": "truncated or damaged",
        "other.safetensors": "cannot be used as weights of tiny-clip: Missing key",
    }.items():
        with pytest.raises(WeightsError, match=words) as raised:
            load_clip(parse_clip(f"tiny-clip:{tmp_path / name}"))
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert not (tmp_path / "ran").exists()
    assert capfd.readouterr().err == "", "open_clip's own log"
    with pytest.raises(WeightsError, match="Missing key"):
        run_ladder(images, clip=f"tiny-clip:{tmp_path / 'other.safetensors'}", out=tmp_path / "out", progress=QUIET)
    assert not list((tmp_path / "out").rglob("manifest.json")), "something was trained before"


def test_wishes_that_cannot_be_are_refused(open_clip: Any, weights: Path, images: Path, tmp_path: Path) -> None:
    for which, words in {
        "ViT-B32:x": r"CLIP model 'ViT-B32'. Did you mean 'ViT-B-32'",
        "ViT-B-32": r"NAME:TAG was needed",
        "ViT-B-32:laion2b_s34b_b79": r"Did you mean 'laion2b_s34b_b79k'",
        "ViT-B-32:openai": r"Give --clip ViT-B-32-quickgelu:openai",
    }.items():
        with pytest.raises(RecipeError, match=words):
            parse_clip(which)
    with pytest.raises(WeightsError, match="There is no weights file"):
        parse_clip("ViT-B-32:no/such.safetensors")
    assert parse_clip() == ClipModel("ViT-B-32", "laion2b_s34b_b79k", "an image of a {class}")
    with pytest.raises(RecipeError, match="--variants, or give --clip"):
        run_ladder(images, prompt="a {class}", out=tmp_path / "no", progress=QUIET)
    rows = [f"{path},{path.parent.name} small" for path in sorted(images.rglob("*.jpg"))]
    (tmp_path / "many.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(RecipeError, match="one label per image"):
        run_ladder(tmp_path / "many.csv", labels="many", variants=["majority", "zeroshot"], out=tmp_path / "many",
                    clip=f"tiny-clip:{weights}", progress=QUIET)  # fmt: skip
