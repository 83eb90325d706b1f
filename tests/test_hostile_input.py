"""Recipes, manifests, model folders and tables that someone else wrote: used, or refused in one line.

`SECURITY.md` says what holds; `benchmarks/RELIABILITY.md` lists the outcomes.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
from commands import Command, call
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

import baseline
from baseline.cli.results import report_command
from baseline.data.audit.scan import scan_images
from baseline.data.image import load_image
from baseline.data.sources import read_table
from baseline.data.sources.image_list import list_images
from baseline.deploy.hub import plan_push
from baseline.deploy.server.app import create_app
from baseline.deploy.server.predictor import Limits
from baseline.errors import BaselineError, OutputError, RecipeError
from baseline.experiments.compare import compare_runs, list_runs
from baseline.files import file_identities, write_atomic
from baseline.parallel import memory
from baseline.report import figures
from baseline.report.model_card import write_card
from baseline.report.page import write_report
from baseline.training.checkpoint import Checkpoints
from baseline.vision import model_folder
from baseline.vision.model_folder import read_config


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of a finished run, to be edited."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---- paths and names ------------------------------------------------------------------------------------------------


def served_examples(run: Path, **options: Any) -> list[bytes]:
    """All that `GET /examples/NUMBER` returns, small or not."""
    app = create_app(run, **options)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answers = [client.get(f"/examples/{number}{end}") for number in range(9) for end in ("", "/small")]
    return [answer.content for answer in answers if answer.status_code == 200]


def name_in_split(run: Path, *paths: Path) -> None:
    """Make the run's `split.csv` name these files as its test images."""
    pd.DataFrame({"path": list(map(str, paths)), "label": "ants", "split": "test"}).to_csv(run / "split.csv")


def test_serve_hands_out_no_file_that_is_not_an_image_of_the_run(run: Path, images: Path, tmp_path: Path) -> None:
    secret, private = tmp_path / "secret.txt", tmp_path / "private.png"
    secret.write_text("password")
    Image.new("RGB", (60, 60), "red").save(private)
    copy = Path(shutil.copytree(images, tmp_path / "copy"))
    edit_json(run / "manifest.json", images=str(copy))
    (copy / "text.jpg").write_text("password")
    (copy / "link.png").symlink_to(private)
    (copy / "linked").symlink_to(tmp_path)
    os.mkfifo(copy / "pipe.jpg")
    outside = [secret, private, copy / "link.png", copy / "linked" / "private.png", copy / ".." / "private.png"]
    name_in_split(run, *outside, Path("/etc/passwd"), copy / "text.jpg", copy / "pipe.jpg", copy / "absent.jpg")
    assert served_examples(run) == []
    name_in_split(run, *outside, copy / "ants" / "00.jpg")
    large, small = served_examples(run)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(large))), np.asarray(load_image(copy / "ants" / "00.jpg")))
    assert Image.open(io.BytesIO(small)).format == "JPEG"


@pytest.mark.parametrize("folder", ["/", "HOME", "HOME/..", "", None, "images", ".", "/../"])
def test_serve_shows_no_image_where_the_manifest_claims_all_files(
    run: Path, images: Path, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    edit_json(run / "manifest.json", images=folder and folder.replace("HOME", str(tmp_path)))
    name_in_split(run, tmp_path / "images" / "ants" / "00.jpg")
    assert served_examples(run) == []


def test_examples_are_decoded_under_the_limits_of_the_server(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
    noise.save(folder / "bytes.png")
    Image.new("RGB", (1500, 800)).save(folder / "pixels.png")
    Image.new("RGB", (60, 40)).save(folder / "page.pcx")  # a format of files, and none of uploads
    Image.new("RGB", (60, 40)).save(folder / "fine.jpg", comment=b"where I live")
    edit_json(run / "manifest.json", images=str(folder))
    name_in_split(run, *sorted(folder.iterdir()))
    large, small = served_examples(run, limits=Limits(megabytes=1, megapixels=1))
    assert Image.open(io.BytesIO(large)).size == (60, 40)
    assert b"where I live" not in large + small


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", ".", "a/b", "a\\b", "a\0b", "a\nb", "x" * 201])
def test_the_name_of_a_recipe_is_no_path(name: str, images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": name, "image_size": 48}))
    with pytest.raises(RecipeError, match=r"name is .* needed: a name of 1 to 200 bytes without / and"):
        baseline.load_recipe(recipe)
    with pytest.raises(RecipeError, match="name is"):
        baseline.make_baseline(images, name=name)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["ants and bees", "Größe", "-x", "..."])
def test_other_names_of_recipes_are_accepted(name: str) -> None:
    assert baseline.Recipe(name=name).name == name


def test_a_link_left_behind_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".report.html.part").symlink_to(tmp_path / "mine.txt")
    write_atomic(tmp_path / "report.html", "report")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (tmp_path / "report.html").read_text() == "report"


def test_what_a_link_in_a_model_folder_names_is_not_published(run: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (run / "model" / "notes.txt").symlink_to(tmp_path / "key")
    ended = call("push", run, "me/ants", "--dry-run")
    assert ended.returncode == 2 and "notes.txt is a link to a file elsewhere" in ended.stderr


def test_an_image_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(OSError, match="not a file"):
        load_image(tmp_path / "image.jpg")


# ---- what is read: recipes, manifests, tables, expressions ----------------------------------------------------------

DEEP = 10_000


def measured(function: Any, *arguments: Any) -> tuple[str, float]:
    """The one-line error of a call, and the seconds of CPU time until it came, with those of ended processes."""
    start = sum(os.times()[:4])
    with pytest.raises(BaselineError) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 8000
    return str(raised.value), sum(os.times()[:4]) - start


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"recipe": null}', "is None; a table of keys and values was needed"),
        ("a.json", '{"recipe": []}', r"is \[\]; a table"),
        ("a.json", '{"format": 99, "recipe": {}}', "has format 99; this version of baseline reads up to 2"),
        ("a.json", '{"format": "x", "recipe": {}}', "has format 'x'"),
        ("a.json", '{"format": true, "recipe": {}}', "has format True"),
        ("a.json", '{"a":' * DEEP + "1" + "}" * DEEP, "nested deeper than 100 levels"),
        ("a.json", '{"a":' + "[" * 500 + "]" * 500 + "}", "nested deeper than 100 levels"),
        ("a.json", '{"title": "\\ud800"}', "half of a surrogate pair"),
        ("a.json", '{"seed": ' + "9" * 10_000 + "}", "is not valid JSON: Exceeds the limit"),
        ("a.json", json.dumps({f"key{n}": n for n in range(200_000)}), "There is no key 'key0'"),
        ("a.json", json.dumps({"model": {f"key{n}": n for n in range(200_000)}}), "There is no key 'key0'"),
        ("a.json", json.dumps({"stages": [{"trains": "all", "epochs": 1}] * 100_000}), "needed: 1 to 100 stages"),
        ("a.json", json.dumps({"arch": "an arch " * 10**5, "seed": "yes " * 10**6}), "seed is 'yes"),
        ("a.toml", "a = " + "[" * DEEP + "]" * DEEP, "nested deeper than 100 levels"),
        ("a.toml", "a = " + "{a = " * DEEP + "1" + "}" * DEEP, "nested deeper than 100 levels"),
        ("a.toml", ".".join("a" * 4 * DEEP) + " = 1", "nested deeper than 100 levels"),
        ("a.toml", f"[{'.'.join('a' * 10 * DEEP)}]", "nested deeper than 100 levels"),
        ("a.toml", '[[stage]]\ntrains = "all"\nepochs = 1\n' * 100_000, "more than 1,000,000 bytes"),
        ("a.toml", '[[stage]]\ntrains = "all"\nepochs = 1\n' * 10_000, "needed: 1 to 100 stages"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_used_is_refused_in_one_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    error, seconds = measured(baseline.load_recipe, tmp_path / name)
    assert re.search(message, error) and seconds < 3


def test_a_recipe_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    assert "not a file" in measured(baseline.load_recipe, tmp_path / "a.toml")[0]


PLACES: dict[str, Callable[[Path], object]] = {
    "manifest.json": lambda run: write_report(run, baseline.Progress()),
    "predictions.csv": lambda run: write_report(run, baseline.Progress()),
    "split.csv": lambda run: write_report(run, baseline.Progress()),
    "model/model.json": baseline.load,
    "unfinished/begun.json": baseline.resume,
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["pipe", "deep", "surrogate", "list", "folder"])
def test_a_file_of_a_run_that_is_something_else_is_refused_at_once(name: str, kind: str, run: Path) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    content = {"deep": "[" * DEEP + "]" * DEEP, "surrogate": '{"format": 2, "a": "\\ud800"}', "list": "[1]"}
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).write_text(content[kind])
    assert measured(PLACES[name], run)[1] < 10


def mutated(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts, at any depth, replaced or removed."""
    odd = [None, "", 0, -1, 1e999, "x", [], {}, [[]], [{}], True, "a\0b", 2**70, {"": None}, [1] * 200]
    value = json.loads(json.dumps(value))
    place, depth = value, rng.choice((1, 2, 3, 9))
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        depth -= 1
        if depth and isinstance(place[key], dict | list) and place[key]:
            place = place[key]
        elif rng.random() < 0.3:
            del place[key]
            return value
        else:
            place[key] = rng.choice(odd)
            return value


@pytest.mark.parametrize("rounds", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_edited_manifests_are_used_or_refused_in_one_line(
    rounds: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "png", lambda _: b"")  # drawing takes most of the time, and reads no manifest
    whole, rng, refused = json.loads((run / "manifest.json").read_text()), random.Random(rounds), 0
    commands: list[Callable[[], object]] = [
        lambda: write_card(run), lambda: list_runs(run), lambda: plan_push(run, "me/ants"),
        lambda: baseline.load_recipe(run / "manifest.json"),
    ]  # fmt: skip
    slow: list[Callable[[], object]] = [
        lambda: compare_runs([run, run]), lambda: write_report(run, baseline.Progress()),
    ]  # fmt: skip
    for number in range(rounds):
        (run / "manifest.json").write_text(json.dumps(mutated(whole, rng)))
        for command in commands if number % 15 else [*commands, *slow]:
            try:
                command()
            except BaselineError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > rounds / 4


def test_a_report_is_not_written_where_the_card_cannot_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(run / "manifest.json", calibration={"temperature": "warm"})
    (run / "report.html").write_text("as it was")
    monkeypatch.setattr(figures, "png", lambda _: b"")
    with pytest.raises(OutputError, match="does not hold what a run writes"):
        report_command(run, quiet=True)
    assert (run / "report.html").read_text() == "as it was"


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_of_200000_columns_is_refused_at_once(kind: str, images: Path, tmp_path: Path) -> None:
    cells = {"csv": ",", "tsv": "\t"}[kind].join(f"c{number}" for number in range(200_000))
    (tmp_path / f"table.{kind}").write_text(f"{cells}\n{cells}\n")
    error, seconds = measured(baseline.image_table, tmp_path / f"table.{kind}")
    assert "has 200,000 columns, and at most 20,000 are read" in error and seconds < 3
    copy = shutil.copytree(images, tmp_path / "images")
    shutil.copy(tmp_path / f"table.{kind}", copy)
    assert len(baseline.image_table(copy)) == 48  # a table beside the images that is not needed


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(a){4294967295}", "is not a regular expression: the repetition number is too large"),
        ("(a+)+$", r"takes more than 1 s on 4 names\. Avoid repetitions inside of repetitions"),
        (r"(\w*)*=", "takes more than 1 s"),
        ("(" * 5000 + ")" * 5000, "is not a regular expression: maximum recursion"),
        ("([a-z]+", "is not a regular expression: missing"),
        ("[a-z]+", "has no group"),
        ("\ud800(a)", "does not match the paths of 4 of 4 images"),
    ],
)
def test_an_expression_that_never_ends_is_ended(expression: str, message: str, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{'a' * 60}{number}.png")
    error, seconds = measured(lambda: baseline.image_table(tmp_path, label_from=expression))
    assert re.search(message, error) and seconds < 5


def test_labels_and_groups_are_found_in_names(tmp_path: Path) -> None:
    for name in ("ant_x_1", "ant_y_2", "bee_x_3", "bee_y_4"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    table = baseline.image_table(tmp_path, label_from=r"(?P<label>[a-z]+)_(?P<group>[a-z])_")
    assert sorted(zip(table["label"], table["group"], strict=True)) == [
        ("ant", "x"), ("ant", "y"), ("bee", "x"), ("bee", "y"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["\ud800", "a\ud800", None, [], {}, 1, "wasps\0"])
def test_gradcam_of_a_class_that_is_none_is_refused(name: Any, tiny: Path, images: Path) -> None:
    content = base64.b64encode((images / "ants" / "00.jpg").read_bytes()).decode()
    with TestClient(create_app(tiny), base_url="http://localhost", raise_server_exceptions=False) as client:
        body = json.dumps({"image": content, "class": name})
        answer = client.post("/gradcam", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == (200 if name is None else 400 if "\ud800" in str(name) else 422)
        form = client.post("/gradcam", files={"image": b"x", "class": (None, b"\xff\xed\xa0\x80")})
        assert form.status_code in (400, 422)


# ---- memory before it is needed -------------------------------------------------------------------------------------


def tar_header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("use", ["image_table", "predict"])
def test_a_header_of_a_tar_that_unpacks_to_gigabytes_is_refused(kind: bytes, use: str, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(tar_header(kind, 3 * 10**8))
        for _ in range(300):
            file.write(bytes(10**6))
    tracemalloc.start()
    read = baseline.image_table if use == "image_table" else lambda path: list_images([str(path)])[0]
    error, _ = measured(read, archive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a header of 300,000,000 bytes, and at most 65,536 are read" in error and peak < 50e6


def test_a_tar_of_nested_headers_is_refused(tmp_path: Path) -> None:
    chain = (tar_header(tarfile.XHDTYPE, 512) + b"18 path=aaaaaaaaa\n".ljust(512, b"\0")) * 3000
    (tmp_path / "images.tar").write_bytes(chain)
    assert "is damaged" in measured(baseline.image_table, tmp_path / "images.tar")[0]


@pytest.mark.parametrize("kind", ["global headers", "sparse file"])
def test_a_tar_of_small_headers_that_grow_in_memory_is_refused(kind: str, images: Path, tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("ants/sparse.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    global_headers = [tarfile.TarInfo.create_pax_global_header({f"key{n}": "x" * 300}) for n in range(300)]
    headers = global_headers if kind == "global headers" else [sparse.tobuf(tarfile.GNU_FORMAT)]
    with tarfile.open(tmp_path / "members.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(images, "images")
    (tmp_path / "images.tar").write_bytes(b"".join(headers) + (tmp_path / "members.tar").read_bytes())
    assert kind in measured(baseline.image_table, tmp_path / "images.tar")[0]


def test_long_names_in_tars_are_read(images: Path, tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "images.tar", "w", format=form) as archive:
            for path in sorted(images.rglob("*.jpg")):
                archive.add(path, f"{'long' * 50}/{path.parent.name}/{path.name}")
        assert len(baseline.image_table(tmp_path / "images.tar")) == 48


def test_a_model_larger_than_memory_is_refused_before_it_is_built(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(folder / "model.json", image_size=4096)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 300 * 10**6)
    monkeypatch.setattr(model_folder, "build_from_config", lambda *_: pytest.fail("the network was built"))
    error, _ = measured(baseline.load, folder)
    assert re.search(r"test_efficientnet at 4096 pixels needs [\d.]+ GB of memory, but only 0\.3 GB are free", error)
    edit_json(folder / "model.json", image_size=48)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10**5)
    assert "model.safetensors needs 0.0 GB of memory" in measured(baseline.load, folder)[0]


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("regnet_y_128gf", r"lacks '0\.0\.0\.weight' of regnet_y_128gf"),  # computes while it is built
        ("mobilenetv5_300m_enc", "mobilenetv5_300m_enc cannot be built here|lacks '"),  # has no head that can be cut
    ],
)
def test_a_large_architecture_that_does_not_fit_takes_no_memory(
    arch: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not report peak memory")
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(folder / "model.json", arch=arch, image_size=224)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is in use
    before = peak_kilobytes()
    assert re.search(message, measured(baseline.load, folder)[0])
    assert (peak_kilobytes() - before) / 1000 < 300  # their 645 M and 294 M parameters take 2.6 and 1.2 GB


def peak_kilobytes() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def test_an_architecture_that_computes_while_it_is_built_is_built_without_values(tiny: Path) -> None:
    network = model_folder.build_on_meta(tiny, read_config(tiny / "model.json") | {"arch": "regnet_x_400mf"})
    assert all(value.is_meta for value in network.state_dict().values())
    needed, ended = memory.forward_bytes(network.eval(), 224)
    assert needed > 10**6 and ended


def test_memory_until_a_network_fails_is_estimated() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(7)).to("meta").eval()
    assert memory.forward_bytes(network, 100) == (4 * 64 * 100 * 100 * 4, False)


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.Hardsigmoid])
def test_memory_is_estimated_beyond_activations_in_place(activation: type[nn.Module]) -> None:
    layers = nn.Conv2d(3, 8, 3), activation(inplace=True), nn.Conv2d(8, 64, 1)  # type: ignore[call-arg]
    assert memory.forward_bytes(nn.Sequential(*layers).to("meta").eval(), 100) == (4 * 64 * 98 * 98 * 4, True)


def test_small_files_of_large_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"path": ["a.jpg"] * 10**6, "label": "a"}).to_parquet(tmp_path / "a.parquet")
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", bytes(10**8))
    monkeypatch.setattr(read_table, "free_memory_bytes", lambda: 10**8)
    for name in ("a.parquet", "a.xlsx"):
        assert (tmp_path / name).stat().st_size < 200_000
        assert "about 1,000,000 rows, which need" in measured(baseline.image_table, tmp_path / name)[0]


# ---- images that are replaced ---------------------------------------------------------------------------------------


def swap(one: Path, other: Path) -> None:
    """Swap the contents of two files of the same size, in place, and keep the modification times."""
    contents, times = [path.read_bytes() for path in (one, other)], [path.stat().st_mtime_ns for path in (one, other)]
    for path, content, modified in zip((one, other), reversed(contents), times, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(modified, modified))


@pytest.mark.parametrize("way", ["written", "renamed"])
def test_images_of_equal_size_that_are_swapped_are_read_again(way: str, tmp_path: Path) -> None:
    colors = {"red": (200, 0, 0), "blue": (0, 0, 200)}
    for name, color in colors.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 40), color).save(tmp_path / name / f"{number}.bmp")
            os.utime(tmp_path / name / f"{number}.bmp", ns=(10**18, 10**18))
    table = baseline.image_table(tmp_path)
    before, identities = scan_images(list(table["path"]), baseline.Progress()), file_identities(table["path"])
    checkpoints = Checkpoints(tmp_path / "run")
    recorded = table.assign(split="train")
    checkpoints.start({"asked": {"recipe": {}, "images": ""}, "recipe": {}, "reasons": {}, "device": ""}, recorded)
    one, other = tmp_path / "red" / "0.bmp", tmp_path / "blue" / "0.bmp"
    if way == "written":
        swap(one, other)
    else:
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
    assert one.stat().st_mtime_ns == other.stat().st_mtime_ns == 10**18
    after = scan_images(list(table["path"]), baseline.Progress())
    assert (before.digest != after.digest).sum() == 2 and (before.thumb != after.thumb).any(axis=1).sum() == 2
    assert file_identities(table["path"]) != identities
    with pytest.raises(OutputError, match="2 image files were rewritten"):
        checkpoints.verify_start({"recipe": {}, "images": ""}, recorded)


def test_an_archive_that_is_replaced_by_one_of_equal_size_is_unpacked_again(images: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    for names in (("ants", "bees"), ("bees", "ants")):
        with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as opened:
            for name, label in zip(("ants", "bees"), names, strict=True):
                opened.add(images / name / "00.jpg", f"{label}/00.jpg")
                opened.add(images / name / "01.jpg", f"{label}/01.jpg")
        os.utime(archive, ns=(10**18, 10**18))
        table = baseline.image_table(archive)
        first = next(path for path in table["path"] if path.endswith("ants/00.jpg"))
        assert Path(first).read_bytes() == (images / ("ants" if names[0] == "ants" else "bees") / "00.jpg").read_bytes()


# ---- standard output ------------------------------------------------------------------------------------------------


def full_disk() -> IO[str]:
    return Path("/dev/full").open("w")


def pipe_that_nobody_reads() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("open_output", "code", "message"),
    [
        (full_disk, 2, "baseline: Standard output cannot be written: No space left on device. Pass --out FILE"),
        (pipe_that_nobody_reads, 141, ""),
    ],
)
def test_a_standard_output_that_cannot_be_written_is_one_line(
    open_output: Callable[[], IO[str]], code: int, message: str, tiny: Path, images: Path, tmp_path: Path
) -> None:
    with (tmp_path / "errors").open("w") as errors:
        ended = Command("predict", tiny, images, "--quiet", stdout=open_output(), stderr=errors).wait(300)
    lines = (tmp_path / "errors").read_text().splitlines()
    assert ended == code and len(lines) <= 1 and message in "".join(lines), lines


def test_a_closed_standard_output_is_one_line(tiny: Path, images: Path) -> None:
    command = f"'{sys.executable}' -m baseline predict '{tiny}' '{images}' --quiet >&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("baseline: Standard output is closed. Pass --out FILE.")
    assert ended.stderr.count("\n") == 1


def test_a_closed_standard_input_is_an_empty_list(tiny: Path) -> None:
    command = f"'{sys.executable}' -m baseline predict '{tiny}' - --quiet <&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "path,predicted,confidence,error\n", "")


# ---- requests and checksums -----------------------------------------------------------------------------------------


def test_a_form_that_is_cut_is_called_cut(tiny: Path, images: Path) -> None:
    head = b'--end\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    whole = head + (images / "ants" / "00.jpg").read_bytes() + b"\r\n--end--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=end"}
    with TestClient(create_app(tiny), base_url="http://localhost", raise_server_exceptions=False) as client:
        assert client.post("/predict", content=whole, headers=headers).status_code == 200
        assert client.post("/predict", content=whole + b"an epilogue", headers=headers).status_code == 200
        for length in (len(whole) // 2, len(whole) - 4, len(head) + 1):
            answer = client.post("/predict", content=whole[:length], headers=headers)
            assert answer.status_code == 400 and "cut" in answer.json()["error"], length


@pytest.mark.parametrize("text", ["", "0", "x" * 64, None])
def test_a_checksum_that_is_none_is_refused(text: str | None, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(folder / "model.json", sha256={"model.safetensors": text})
    assert "lacks sha256" in measured(baseline.load, folder)[0]
