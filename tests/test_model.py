"""A loaded model predicts what its run predicted, and a damaged model folder is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from PIL import Image
from safetensors.torch import load_file, save, save_file
from test_kaggle import environment, wheel

import baseline
from baseline import Augment, BaselineError, load
from baseline.data.labels import label_matrix
from baseline.errors import BaselineError as Root
from baseline.errors import DataError, OutputError, WeightsError
from baseline.files import sha256_of
from baseline.inference.model import Model
from baseline.vision.model_folder import load_network

SHARES = ["p_ants", "p_bees"]
OLD = Path(__file__).parent / "models"
"""Model folders that older versions wrote, and what they predicted."""


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model folder that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of `model.json`; `...` removes one."""
    config = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


# ---- predictions ----------------------------------------------------------------------------------------------------


def test_a_network_is_passed_once_while_it_is_loaded_and_not_on_the_cpu(tiny: Path) -> None:
    devices: list[str] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, output: devices.append(output.device.type) if isinstance(module, torch.nn.Linear) else None
    )
    with hook:
        load_network(tiny)
    assert devices == ["meta"]


def test_a_loaded_model_predicts_what_its_run_predicted(done: baseline.Baseline) -> None:
    rows = done.predictions
    model = load(done.folder)
    found = model.predict(rows["path"].tolist(), calibrated=False)
    assert list(found) == ["path", "predicted", "confidence", *SHARES] and list(found["path"]) == list(rows["path"])
    assert np.abs(found[SHARES].to_numpy() - rows[SHARES].to_numpy()).max() < 1e-5
    assert list(found["predicted"]) == list(rows["predicted"])
    plain = model.predict(rows["path"].tolist(), tta=False, calibrated=False)
    assert np.allclose(plain["confidence"], rows["plain_confidence"], atol=1e-5)
    tempered = baseline.calibrate(rows, model.config["temperature"])
    calibrated = done.predict(rows["path"])
    assert np.allclose(calibrated[["confidence", *SHARES]], tempered[["confidence", *SHARES]], atol=1e-5)
    assert model.config["weights_license"] == "apache-2.0"
    assert model.config["temperature"] == done.manifest["calibration"]["temperature"] and model.check() < 1e-5


def test_images_may_be_paths_folders_bytes_arrays_or_pil_images(tiny: Path, images: Path) -> None:
    model, path = load(tiny), images / "ants" / "00.jpg"
    by_path = model.predict(path)
    assert model.predict(str(path)).equals(by_path) and model.predict([path]).equals(by_path)
    image, whole = Image.open(path), np.asarray(Image.open(path))
    others = [path.read_bytes(), image, whole, Image.fromarray(whole)]
    found = model.predict(others)
    assert list(found["image"]) == [0, 1, 2, 3]
    shares = found[["p_ants", "p_bees", "p_wasps"]].to_numpy()
    assert np.allclose(shares[:2], by_path.iloc[0, 3:].astype(float)) and np.allclose(shares[2], shares[3])
    assert len(model.predict(np.stack([others[2]] * 3))) == 3 and len(model.predict(images)) == 48
    assert list(model.predict([])) == ["path", *list(found)[1:]]
    with pytest.raises(DataError, match="Image 1 cannot be read: a path, bytes, an open file, an array, a tensor"):
        model.predict([image, 3])
    with pytest.raises(DataError, match=r"nowhere\.jpg cannot be read: No such file"):
        model.predict("nowhere.jpg")


def test_the_batch_size_does_not_change_predictions(tiny: Path, images: Path) -> None:
    model = load(tiny)
    paths = sorted(map(str, images.rglob("*.jpg")))
    whole = model.predict(paths)  # below a batch, and so without the quicker passes
    for size in (5, 16, 48):
        again = model.predict(paths, batch_size=size)
        assert list(again["predicted"]) == list(whole["predicted"])
        assert np.allclose(again.iloc[:, 2:], whole.iloc[:, 2:], atol=1e-5)


def test_larger_decoded_images_are_resized_as_in_the_run(settled: tuple, tmp_path: Path) -> None:
    recipe, table = settled
    recipe = recipe.changed(augment=Augment(crop=0.5))
    torch.manual_seed(0)
    learn = baseline.learner(baseline.dataloaders(table, recipe, path=tmp_path), recipe, path=tmp_path)
    expected = baseline.predict(learn, table, recipe.evaluation.tta)
    config = {
        "arch": recipe.model.arch, "head": recipe.model.head, "classes": list(learn.dls.vocab),
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "image_size": 48, "resize": "squish",
        "crop": 0.5, "tta": recipe.evaluation.tta,
        "task": "single", "threshold": 0.5, "temperature": None, "precision": "float32",
    }  # fmt: skip
    found = Model(learn.model, config, tmp_path).predict(expected["path"])
    assert np.abs(found[SHARES].to_numpy() - expected[SHARES].to_numpy()).max() < 1e-5


def test_multilabel_thresholds_apply_before_the_temperature(folder: Path, images: Path) -> None:
    edit_config(folder, task="multilabel", threshold=0.4, temperature=4.0)
    model = load(folder)
    raw, found = model.predict(images, calibrated=False), model.predict(images)
    shares = [f"p_{name}" for name in model.classes]
    assert list(raw["predicted"]) == list(found["predicted"])
    flags = label_matrix(found["predicted"], model.classes)
    assert (flags == (raw[shares].to_numpy() >= 0.4)).all() and 0 < flags.mean() < 1
    odds = [np.log(table[shares] / (1 - table[shares])) for table in (raw, found)]
    assert np.allclose(odds[0] / 4, odds[1], atol=1e-6)
    sure = np.where(flags, found[shares], 1 - found[shares]).min(1)
    assert np.allclose(found["confidence"], sure)


def test_the_fastai_learner_predicts_the_same(tiny: Path, images: Path) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    model = load(tiny)
    learn = model.learner
    assert torch.equal(states[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    paths = sorted((images / "ants").iterdir())
    plain = model.predict(paths, tta=False, calibrated=False)
    with learn.no_bar():
        shares, _ = learn.get_preds(dl=learn.dls.test_dl([str(path) for path in paths]))
        name, index, probabilities = learn.predict(paths[0])
    assert np.allclose(shares, plain.iloc[:, 3:], atol=1e-5) and np.allclose(
        probabilities, plain.iloc[0, 3:].astype(float), atol=1e-5
    )
    assert name == plain["predicted"][0] == model.classes[int(index)] and list(learn.dls.vocab) == model.classes


def test_a_read_only_model_folder_predicts_in_a_fresh_process_without_images_or_network(
    done: baseline.Baseline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(done.folder / "model", tmp_path / "alone"))
    shutil.copy(done.predictions["path"][0], tmp_path / "image.jpg")
    for file in (*alone.iterdir(), alone):
        file.chmod(0o555)
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import baseline\n"
        "print(baseline.load(sys.argv[1]).predict(sys.argv[2], calibrated=False).to_json(orient='records'))\n"
    )
    monkeypatch.chdir(alone)
    homes = {"HOME": str(tmp_path / "nobody"), "BASELINE_HOME": str(tmp_path / "none")}
    ended = call(alone, tmp_path / "image.jpg", code=code, **homes)
    assert ended.returncode == 0, ended.stderr
    row = done.predictions.iloc[0]
    assert json.loads(ended.stdout)[0]["p_ants"] == pytest.approx(row["p_ants"], abs=1e-5)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    getattr(os, "geteuid", int)() != 0 or not shutil.which("unshare"), reason="needs root, to become somebody else"
)
def test_a_wheel_in_a_fresh_environment_predicts_the_same_for_another_user_without_images_or_network(
    small: baseline.Recipe, images: Path
) -> None:
    """As user 65534, with the network off, from a read-only folder, after the images were deleted."""
    pytest.importorskip("hatchling")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own folders are root's alone
        work = Path(place)
        work.chmod(0o755)
        shutil.copytree(images, work / "images")
        done = baseline.make_baseline(work / "images", small, out=work / "run", progress=baseline.Progress())
        Path(work / "shown").mkdir()
        shown = [shutil.copy(path, work / "shown" / f"{n:02}.jpg") for n, path in enumerate(done.predictions["path"])]
        shutil.rmtree(work / "images")
        python = environment(work / "venv")
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel(work / "wheels")]
        subprocess.run(install, check=True, env={"PATH": os.environ["PATH"], "HOME": str(work / "none")})
        folder = Path(shutil.copytree(done.folder / "model", work / "model"))
        subprocess.run(["chmod", "-R", "a-w,a+rX", folder, work / "shown"], check=True)
        code = (
            "import os, sys, socket, baseline\n"
            "assert os.getuid() == 65534 and 'venv' in baseline.__file__, baseline.__file__\n"
            "try: socket.create_connection(('127.0.0.1', 9), 1)\n"
            "except OSError as error: assert 'unreachable' in str(error), error\n"
            "found = baseline.load(sys.argv[1]).predict(sys.argv[2:], calibrated=False)\n"
            "print(found.to_json(orient='records', double_precision=15))\n"
        )
        alone = [
            "unshare",
            "--net",
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            python,
            "-W",
            "ignore",
        ]
        ended = subprocess.run([*alone, "-c", code, folder, *shown], capture_output=True, text=True, cwd="/",
                               env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        found = np.array([[row[name] for name in SHARES] for row in json.loads(ended.stdout)])
        difference = np.abs(found - done.predictions[SHARES].to_numpy()).max()
        print(f"largest difference of {len(found)} x {len(SHARES)} probabilities: {difference:.1e}")
        assert difference < 1e-5


@pytest.mark.parametrize("old", sorted(OLD.iterdir()), ids=lambda path: path.name)
def test_folders_of_older_versions_still_load(old: Path) -> None:
    expected = json.loads((old / "expected.json").read_text())
    squares = np.arange(2 * 48 * 48 * 3).reshape(2, 48, 48, 3) * 7 % 251
    found = load(old).predict(squares.astype(np.uint8))
    assert np.allclose(found.iloc[:, 3:], expected["probabilities"], atol=1e-4)
    assert list(found["predicted"]) == expected["predicted"]


def test_fields_missing_from_the_first_format_are_filled_in(folder: Path, images: Path) -> None:
    expected = load(folder).predict(images, tta=False, calibrated=False)
    (folder / "golden.safetensors").unlink()
    edit_config(
        folder,
        format=1,
        **dict.fromkeys(("sha256", "crop", "precision", "tta", "task", "threshold", "temperature"), ...),
    )
    old = load(folder)
    assert old.predict(images).equals(expected) and old.config["tta"] == [] and old.config["temperature"] is None
    assert old.config["weights_license"] == "unknown"
    with pytest.raises(OutputError, match="has no golden inputs"):
        old.check()


# ---- checks ---------------------------------------------------------------------------------------------------------


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of the tensors in a folder as they are now, as someone would write them who has changed them."""
    return {name: sha256_of(folder / name) for name in ("model.safetensors", "golden.safetensors")}


def test_check_detects_a_network_that_predicts_something_else(folder: Path) -> None:
    assert load(folder).check() < 1e-5
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    save_file(tensors | {name: tensors[name] + 0.1}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="is damaged: its sha256 begins with"):
        load(folder)
    edit_config(folder, sha256=file_hashes(folder))
    with pytest.raises(WeightsError, match=r"does not predict as it did when saved: .* at most 0\.0001"):
        load(folder).check()


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def overwrite(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def change_tensors(change: Any, **fields: Any) -> Any:
    """Return a function that changes the tensors of a folder whose `model.json` has no sha256 of them."""

    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
        edit_config(folder, format=1, **fields)

    return damage


def change_first(value: Any) -> Any:
    return lambda tensors: tensors | {min(tensors): value(tensors[min(tensors)])}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.json").unlink(), r"model\.json cannot be read: No such file"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors cannot be read: No such file"),
        (overwrite("model.json", b""), r"model\.json is damaged"),
        (overwrite("model.json", b"\xff{}"), r"model\.json is damaged: 'utf-8' codec"),
        (overwrite("model.json", b"[1]"), "does not describe a network"),
        (overwrite("model.json", b"[" * 100_000), "is damaged: maximum recursion"),
        (overwrite("model.json", b"{}"), "has format None; this version reads 1 to 3"),
        (lambda f: edit_config(f, format=4), "has format 4; this version reads 1 to 3. Update baseline"),
        (lambda f: edit_config(f, format=True), "has format True"),
        (lambda f: edit_config(f, classes=...), "lacks classes"),
        (lambda f: edit_config(f, task=...), "lacks task"),
        (lambda f: edit_config(f, task="many"), "task is 'many', needed: single or multilabel"),
        (lambda f: edit_config(f, sha256=...), "lacks sha256"),
        (lambda f: edit_config(f, sha256=[]), "lacks sha256"),
        (lambda f: edit_config(f, arch="resnet5O"), "There is no architecture 'resnet5O'. Did you mean 'resnet50'"),
        (lambda f: edit_config(f, arch="hf-hub:timm/resnet18"), "There is no architecture 'hf-hub:timm/resnet18'"),
        (lambda f: edit_config(f, arch="vgg16"), "belongs to a network other than vgg16|lacks '"),
        (lambda f: edit_config(f, arch="vit_giant_patch14_dinov2"), "lacks '"),
        (lambda f: edit_config(f, head="fastai"), "lacks '|belongs to a network other than"),
        (lambda f: edit_config(f, image_size=10**9), "image_size is 1000000000, needed: a whole number of pixels"),
        (lambda f: edit_config(f, image_size=48.0), "image_size is 48.0"),
        (
            lambda f: edit_config(f, classes=["a", "b"]),
            r"belongs to a network other than test_efficientnet with 2 classes",
        ),
        (lambda f: edit_config(f, classes=list("ab") * 2), "needed: a list of 1 to 100,000 unique names"),
        (
            lambda f: edit_config(f, classes=[str(n) for n in range(100_001)]),
            "needed: a list of 1 to 100,000 unique names",
        ),
        (lambda f: edit_config(f, classes=["a", "b", "\ud800"]), "classes is"),
        (lambda f: edit_config(f, mean=[0.5, 0.5]), "mean is .*three numbers"),
        (lambda f: edit_config(f, std=[0.5, 0.5, 0]), "std is .*three numbers above 0"),
        (lambda f: edit_config(f, std=[0.5, 0.5, float("nan")]), "is damaged: NaN is not a number"),
        (lambda f: edit_config(f, temperature=0), "temperature is 0, needed"),
        (
            lambda f: edit_config(f, weights_license=["mit"]),
            "weights_license is .*, needed: the name of a license, or null",
        ),
        (lambda f: edit_config(f, tta=["turn"], resize="stretch"), "resize is 'stretch', needed: .*; tta is"),
        (overwrite("model.safetensors", pickle.dumps(Bomb())), "is a pickle or an archive, and was not opened"),
        (overwrite("model.safetensors", b""), "is damaged"),
        (lambda f: os.truncate(f / "model.safetensors", 9999), "is damaged: its sha256 begins"),
        (change_tensors(lambda t: {}), "lacks '"),
        (change_tensors(lambda t: {key: t[key] for key in list(t)[1:]}), "lacks '"),
        (change_tensors(lambda t: t | {"more": torch.ones(1)}), "holds 'more', which"),
        (change_tensors(change_first(lambda t: t[..., None].contiguous())), "belongs to a network other than"),
        (change_tensors(change_first(lambda t: t * float("nan"))), "values that are not finite, first in"),
        (
            change_tensors(change_first(lambda t: t.to(torch.int64) if t.is_floating_point() else t.float())),
            "belongs to a network other",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_a_one_line_error(folder: Path, damage: Any, words: str) -> None:
    damage(folder)
    with pytest.raises((OutputError, WeightsError), match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 and not list(Path().iterdir())


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(OutputError, match="is not a file"):
        load(folder)


def test_damaged_golden_inputs_are_refused(folder: Path) -> None:
    (folder / "golden.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match=r"golden\.safetensors is damaged"):
        load(folder).check()
    save_file({"images": torch.zeros(2, 4, 5, 3, dtype=torch.uint8)}, folder / "golden.safetensors")
    edit_config(folder, sha256=file_hashes(folder))
    with pytest.raises(WeightsError, match="does not hold images and their probabilities"):
        load(folder).check()


# ---- mutated folders ------------------------------------------------------------------------------------------------

VALUES = [None, True, -1, 0, 1, 3, 1e308, 10**40, "", "a", "../../etc/passwd", "resnet18", [], {}, [[]], [None], "many",
          ["a"] * 3, [0.5] * 3, [1e300] * 3, {"a": 1}, "\x00", "x" * 10_000, ["flip"], "file:///etc", 0.5]  # fmt: skip


def mutate(folder: Path, chance: random.Random) -> None:
    """Change the folder's files in one to three ways."""
    for _ in range(chance.randint(1, 3)):
        path = folder / chance.choice(["model.json", "model.json", "model.safetensors", "golden.safetensors"])
        kind = chance.choice(["field", "field", "flip", "cut", "header", "grow"])
        content = bytearray(path.read_bytes())
        if kind == "field":
            try:
                config = json.loads((folder / "model.json").read_text())
                config[chance.choice([*config, "format", "sha256"])] = chance.choice(VALUES)
                (folder / "model.json").write_text(json.dumps(config))
            except (ValueError, TypeError, LookupError):
                pass
        elif kind == "cut":
            path.write_bytes(content[: chance.randrange(len(content) + 1)])
        elif kind == "grow":
            path.write_bytes(content + bytes(chance.randrange(256) for _ in range(9)))
        elif content:
            last = len(content) if kind == "flip" else min(len(content), 400)
            for _ in range(chance.randint(1, 8)):
                content[chance.randrange(last)] = chance.randrange(256)
            path.write_bytes(content)


def use_mutated_folder(tiny: Path, work: Path, image: Path, seed: int) -> str:
    """Mutate a copy of the folder and use it; return "loaded", or the type of the error."""
    chance = random.Random(seed)
    folder = Path(shutil.copytree(tiny, work / "model", dirs_exist_ok=True))
    if chance.random() < 0.5:  # otherwise nearly all end at the checksum
        edit_config(folder, format=1)
    mutate(folder, chance)
    try:
        model = load(folder)
        model.predict(image)
        model.check()
    except BaselineError as error:
        assert "\n" not in str(error)
        return type(error).__name__
    return "loaded"


def test_mutated_folders_are_either_used_or_refused(tiny: Path, images: Path, tmp_path: Path) -> None:
    image = images / "ants" / "00.jpg"
    outcomes = [use_mutated_folder(tiny, tmp_path, image, seed) for seed in range(200)]
    assert {"OutputError", "WeightsError"} <= set(outcomes) and not list(Path().iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.slow
def test_ten_thousand_mutated_folders(tiny: Path, images: Path, tmp_path: Path) -> None:
    for seed in range(10_000):
        use_mutated_folder(tiny, tmp_path, images / "ants" / "00.jpg", seed)
    assert not list(Path().iterdir())


def test_load_network_returns_the_complete_config(tiny: Path) -> None:
    network, config = load_network(tiny)
    assert not network.training and config["crop"] == 1.0 and issubclass(WeightsError, Root)
    assert set(config["sha256"]) == {"model.safetensors", "golden.safetensors"}


def test_images_in_memory_are_predicted_as_their_files(tiny: Path, images: Path) -> None:
    model, paths = baseline.load(tiny), sorted(images.rglob("*.jpg"))[:3]
    expected = model.predict(paths)["p_ants"].to_numpy()
    pictures = [Image.open(path).convert("RGB") for path in paths]
    arrays = [torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures]
    forms = {
        "a table": pd.DataFrame({"path": [str(path) for path in paths], "label": "x"}),
        "streams": [io.BytesIO(path.read_bytes()) for path in paths],
        "open files": [path.open("rb") for path in paths],
    }
    for name, form in forms.items():
        assert np.allclose(model.predict(form)["p_ants"], expected, atol=1e-6), name
    tensors = model.predict(pictures)["p_ants"].to_numpy()
    assert np.allclose(model.predict(arrays)["p_ants"], tensors, atol=1e-6)
    assert np.allclose(model.predict([array / 255 for array in arrays])["p_ants"], tensors, atol=1e-6)
    assert np.allclose(model.predict(arrays[0])["p_ants"], tensors[:1], atol=1e-6)
    assert np.allclose(model.predict(io.BytesIO(paths[0].read_bytes()))["p_ants"], expected[:1], atol=1e-6)


def test_a_damaged_image_gets_a_row(tiny: Path, images: Path) -> None:
    model, path = baseline.load(tiny), next(images.rglob("*.jpg"))
    wrong = [b"no image", torch.rand(3, 8, 8) * 9, torch.rand(8, 8), None]
    table = model.predict([path, *wrong], on_error="row")
    assert table["error"].tolist()[0] == "" and all(table["error"].tolist()[1:])
    assert table["predicted"].tolist()[1:] == [""] * 4 and table["p_ants"].isna().tolist() == [False] + [True] * 4
    with pytest.raises(DataError, match=r"Image 1 cannot be read: not an image\. .*on_error='row'"):
        model.predict([path, *wrong])
    with pytest.raises(DataError, match="on_error is 'skip'"):
        model.predict(path, on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no column path"):
        model.predict(pd.DataFrame({"file": ["a.jpg"]}))


def test_arrays_and_tensors_of_any_kind_are_read_or_refused(tiny: Path, images: Path) -> None:
    model, array = baseline.load(tiny), np.asarray(Image.open(images / "ants" / "00.jpg"))
    expected, planes = model.predict(array)["p_ants"][0], torch.from_numpy(array.copy()).permute(2, 0, 1)
    same: list[Any] = [
        array / 255, array.astype(np.int64), array[None] / 255, np.asfortranarray(array), array[::1, ::-1][:, ::-1],
        planes.long(), (planes / 255).requires_grad_(), planes.flip(-1).flip(-1), planes[None],
    ]  # fmt: skip
    for value in same:
        assert model.predict(value)["p_ants"][0] == pytest.approx(expected, abs=1e-6)
    grey = model.predict(array[..., 0])["p_ants"][0]
    for value in (array[..., :1], planes[:1], array[..., 0] / 255):
        assert model.predict(value)["p_ants"][0] == pytest.approx(grey, abs=1e-4)
    mask = array[..., 0] > 128
    assert model.predict(mask)["p_ants"][0] == model.predict(mask.astype(np.uint8) * 255)["p_ants"][0]
    refused = {
        "an array H x W x 3 was needed, not 3 x": array.transpose(2, 0, 1),
        "values from 0 to 1 were needed, not 0 to": array.astype(float),
        "values from 0 to 255 were needed, not -": planes.long() - 128,
        "uint8 was needed, not uint16": array.astype(np.uint16),
        "numbers were needed, not": planes.to(torch.complex64),
        "an image without pixels, 0 x 8 x 3": np.zeros((0, 8, 3), np.uint8),
        "Cannot copy out of meta tensor": torch.zeros(3, 8, 8, device="meta"),
        "an image without pixels": Image.new("RGB", (0, 0)),
    }
    table = model.predict(list(refused.values()), on_error="row")
    assert table["predicted"].tolist() == [""] * len(refused)
    for reason, error in zip(refused, table["error"], strict=True):
        assert error.startswith(reason)
    with pytest.raises(DataError, match=r"images: array 8 x 8, object was given; a path"):
        model.predict(np.zeros((8, 8), object))


def test_what_holds_images_is_read_or_refused(tiny: Path, images: Path, tmp_path: Path) -> None:
    model, path = baseline.load(tiny), images / "ants" / "00.jpg"
    expected, content = model.predict(path)["p_ants"][0], path.read_bytes()
    for value in ((p for p in [path]), np.array(str(path)), np.array([path]), pd.Series([str(path)], index=[7]),
                  bytearray(content), memoryview(content), lambda: path):  # fmt: skip
        assert model.predict(value)["p_ants"][0] == expected
    ended, closed = io.BytesIO(content), path.open("rb")
    ended.read(), closed.close()
    refused = {
        "an open file with nothing left to read": ended,
        "read of closed file": closed,
        "a file that was opened as text": io.StringIO(str(path)),
        "no bytes": b"",
        "a URL; download it first": "https://example.org/a.jpg",
        "a path, bytes, an open file, an array, a tensor or a PIL image was needed, not dict": {"path": path},
        "not a file": tmp_path,
    }
    table = model.predict([path, *refused.values()], on_error="row")
    assert table["p_ants"][0] == expected and table["p_ants"][1:].isna().all()
    for reason, error in zip(refused, table["error"][1:], strict=True):
        assert error.startswith(reason)
    for value in (None, 3, {"path": str(path)}, object()):
        with pytest.raises(DataError, match=r"images: .* was given; a path, bytes"):
            model.predict(value)
    for frame in (pd.DataFrame(), pd.DataFrame([[path, path]], columns=["path", "path"])):
        with pytest.raises(DataError, match="has no column path, or several"):
            model.predict(frame)
    with pytest.raises(DataError, match="contains no images"):
        model.predict(tmp_path)


def test_other_files_of_a_folder_are_reported(tiny: Path, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "ants" / "00.jpg", tmp_path / "a.jpg")
    for name in ("b.txt", "c.txt", "d.mp4", "README"):
        (tmp_path / name).write_text("x")
    lines: list[str] = []
    progress = baseline.Progress()
    progress.log = lines.append  # type: ignore[method-assign]
    assert len(baseline.load(tiny).predict(tmp_path, progress=progress)) == 1
    assert lines == [f"{tmp_path}: 1 image; 4 other files ignored: 2 .txt, 1 .mp4, 1 without an ending"]


def test_a_model_shows_itself_in_one_line(tiny: Path) -> None:
    assert repr(baseline.load(tiny)) == f"Model({str(tiny)!r}: test_efficientnet, 3 classes, 48 px)"


def test_labels_of_a_test_loader_come_from_folders_or_a_table(tiny: Path, images: Path, tmp_path: Path) -> None:
    dls = baseline.load(tiny).learner.dls
    paths = sorted(images.rglob("*.jpg"))[::12]
    expected = [path.parent.name for path in paths]
    loader = dls.test_dl(paths, with_labels=True)
    assert [dls.vocab[int(target)] for target in loader.one_batch()[1]] == expected
    table = pd.DataFrame({"path": [str(path) for path in paths], "label": "wasps"})
    assert {dls.vocab[int(target)] for target in dls.test_dl(table, with_labels=True).one_batch()[1]} == {"wasps"}
    copy = shutil.copy(paths[0], tmp_path / "a.jpg")
    with pytest.raises(DataError, match="its folder is not named after a class"):
        dls.test_dl([Path(copy)], with_labels=True).one_batch()


def test_a_header_whose_length_begins_like_a_pickle_is_read(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    contents = (save(tensors, {"padding": "x" * 8 * count}) for count in range(32))
    content = next(content for content in contents if content[0] == 0x80)
    (folder / "model.safetensors").write_bytes(content)
    config = json.loads((folder / "model.json").read_text())
    config["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (folder / "model.json").write_text(json.dumps(config))
    assert baseline.load(folder).check() < 1e-4
