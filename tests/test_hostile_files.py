"""Files that someone else may have written are checked before they are read: what they are, their size, their header.

`SECURITY.md` says what holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

import baseline
from baseline import reading
from baseline.cli.use import check_command
from baseline.data.sources.layouts.cvat import parse_xml
from baseline.deploy.hub import plan_push
from baseline.errors import BaselineError, DataError
from baseline.files import parse_json, sha256_of
from baseline.inference.features import read_embeddings
from baseline.inference.reference import REFERENCE_FILE, Reference, read_reference, save_reference
from baseline.reading import TooLargeError, check_tensor_header, load_npz
from baseline.report import figures
from baseline.report.cards import load_saved_maps
from baseline.report.page import write_report
from baseline.training.checkpoint import Checkpoints
from baseline.vision.weights import read_weights_file


@pytest.fixture
def run(done: baseline.Baseline, tmp_path: Path) -> Path:
    """A copy of a finished run, to be edited."""
    return Path(shutil.copytree(done.folder, tmp_path / "run"))


def refusal(function: Callable[..., object], *arguments: Any) -> str:
    """The one-line error of a call."""
    with pytest.raises(BaselineError) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    return str(raised.value)


def make_sparse(path: Path, gigabytes: int = 1000) -> Path:
    """A file that takes no room on the disk, more memory than any machine has, and less than the maximum of a table."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, gigabytes * 10**9)
    return path


# ---- safetensors ----------------------------------------------------------------------------------------------------


def tensor_file(entries: dict[str, Any], size: int | None = None) -> bytes:
    """The content of a safetensors file with this header."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + bytes(4)


def one_tensor(shape: Any, name: str = "a") -> bytes:
    return tensor_file({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}})


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

HEADERS = [
    (one_tensor([1] * 40_000), "'a' has 40,000 dimensions, and at most 8 are read"),
    (one_tensor([1] * 9), "'a' has 9 dimensions"),
    (one_tensor([1], "a" * 1001), "a name of a tensor has 1,001 characters"),
    (one_tensor(None), "'a' in its header has no shape"),
    (tensor_file({"a": [1]}), "'a' in its header has no shape"),
    (tensor_file({f"t{number}": EMPTY for number in range(60_000)}), "it holds 60,000 tensors, and at most 50,000"),
    (tensor_file({}, 2**62), "its header has 4,611,686,018,427,387,904 bytes"),
    (tensor_file({"a" * 9_000_000: 1}), "its header has 9,000,0"),
    (struct.pack("<Q", 200_001) + b'{"a":' + b"[" * 199_996, "nested too deeply"),
    (b"", "does not begin with the header"),
    (b"\x80\x02}", "does not begin with the header"),
]
"""Contents of files and why they are refused."""


@pytest.mark.parametrize(("content", "message"), HEADERS)
def test_a_header_of_tensors_beyond_what_a_network_has_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tensor_header(content)


def test_headers_of_networks_are_accepted(done: baseline.Baseline) -> None:
    for path in (done.folder / "model").glob("*.safetensors"):
        check_tensor_header(path)
    check_tensor_header(save({f"layers.{number}.weight": torch.ones(1) for number in range(5000)}))


def test_every_reader_of_tensors_checks_the_header(run: Path, done: baseline.Baseline, tmp_path: Path) -> None:
    content, model = one_tensor([1] * 10_000), run / "model"
    (tmp_path / "weights.safetensors").write_bytes(content)
    assert "10,000 dimensions" in refusal(read_weights_file, tmp_path / "weights.safetensors")
    config = json.loads((model / "model.json").read_text())
    config["sha256"][REFERENCE_FILE] = hashlib.sha256(content).hexdigest()
    (model / REFERENCE_FILE).write_bytes(content)
    assert "10,000 dimensions" in refusal(read_reference, model, config)
    config["sha256"] = {"model.safetensors": hashlib.sha256(content).hexdigest()}
    (model / "model.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(content)
    assert "10,000 dimensions" in refusal(baseline.load, model)
    assert "10,000 dimensions" in refusal(plan_push, run, "me/ants")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 1}, {"a": torch.ones(1)}, 0)
    state = json.loads((checkpoints.folder / "state.json").read_text())
    state["sha256"][state["now"]] = hashlib.sha256(content).hexdigest()
    (checkpoints.folder / "state.json").write_text(json.dumps(state))
    (checkpoints.folder / state["now"]).write_bytes(content)
    assert "is damaged. Remove" in refusal(Checkpoints(tmp_path).load)


# ---- model folders --------------------------------------------------------------------------------------------------


def test_check_compares_the_reference_with_its_checksum(run: Path) -> None:
    model, hashes = run / "model", json.loads((run / "model" / "model.json").read_text())["sha256"]
    assert hashes[REFERENCE_FILE] == sha256_of(model / REFERENCE_FILE)
    baseline.load(model).check()
    other = baseline.load(model).reference
    save_reference(model, Reference(other.features[:5], other.distances, other.scores))
    baseline.load(model).check()
    edit_hashes(model, hashes)
    assert "is damaged: its sha256 is not the one in model.json" in refusal(lambda: baseline.load(model).check())
    edit_hashes(model, {name: hashes[name] for name in hashes if name != REFERENCE_FILE})
    baseline.load(model).check()  # as an earlier version wrote it
    (model / REFERENCE_FILE).write_bytes(b"damaged")
    assert "is damaged" in refusal(lambda: baseline.load(model).check())
    (model / REFERENCE_FILE).unlink()
    baseline.load(model).check()


def edit_hashes(model: Path, hashes: dict[str, str]) -> None:
    config = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(config | {"sha256": hashes}))


def test_check_names_files_that_are_not_part_of_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_command(str(run))
    assert "not part of the model" not in capsys.readouterr().out
    (run / "model" / "sub").mkdir()
    for name in ("model.pkl", "sub/code.py"):
        (run / "model" / name).touch()
    (run / "model" / "link").symlink_to("/etc")
    check_command(str(run))
    assert "never opened: 'link', 'model.pkl', 'sub/code.py'\n" in capsys.readouterr().out


# ---- pipes and sparse files -----------------------------------------------------------------------------------------


def report(run: Path) -> Path:
    return write_report(run, baseline.Progress())


def test_saved_heatmaps_that_are_a_pipe_are_computed_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "png", lambda *_: b"")
    (run / "gradcam.npz").unlink()
    os.mkfifo(run / "gradcam.npz")
    assert "Grad-CAM" in report(run).read_text()
    assert (run / "gradcam.npz").is_file()


READ_BY: dict[Callable[[Path], object], list[str]] = {
    report: ["model/model.safetensors", "lr_find.csv", "history.csv", "audit/findings.json", "audit/pairs.csv"],
    lambda run: plan_push(run, "me/ants"): ["model/model.safetensors", "model/README.md"],
}


@pytest.mark.parametrize(("use", "name"), [(use, name) for use, names in READ_BY.items() for name in names])
def test_no_file_of_a_run_that_is_a_pipe_is_waited_for(
    use: Callable[[Path], object], name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "png", lambda *_: b"")  # drawing takes most of the time
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    try:
        use(run)
    except BaselineError as error:
        assert "\n" not in str(error)


def test_a_hash_of_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file"):
        sha256_of(tmp_path / "pipe")


@pytest.mark.parametrize(
    "name", ["predictions.csv", "split.csv", "lr_find.csv", "manifest.json", "audit/findings.json"]
)
def test_a_file_of_a_run_larger_than_memory_is_refused_before_it_is_read(name: str, run: Path) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    make_sparse(run / name)
    assert "GB of memory, but only" in (message := refusal(report, run)) or "more than 200,000,000 bytes" in message


def test_a_split_file_larger_than_memory_is_refused(images: Path, tmp_path: Path) -> None:
    make_sparse(tmp_path / "split.csv")
    with pytest.raises(DataError, match=r"needs 2500\.0 GB of memory"):
        baseline.make_baseline(images, split_file=str(tmp_path / "split.csv"), out=tmp_path / "run")


@pytest.mark.parametrize("suffix", ["txt", "xml", "json", "csv", "tsv", "jsonl", "xlsx", "parquet"])
def test_an_input_larger_than_memory_is_refused_before_it_is_read(suffix: str, tmp_path: Path) -> None:
    path = make_sparse(tmp_path / f"labels.{suffix}")
    message = refusal(baseline.image_table, path)
    assert str(path) in message and re.search(r"GB of memory, but only|more than [\d,]+ bytes", message)
    (tmp_path / "images").mkdir()
    path.rename(tmp_path / "images" / path.name)
    assert str(tmp_path / "images") in refusal(baseline.image_table, tmp_path / "images")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_larger_than_memory_are_refused(suffix: str, tmp_path: Path) -> None:
    path = make_sparse(tmp_path / f"weights.{suffix}", 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "free_memory_bytes", lambda: 10**9)
        assert "it needs 90.0 GB of memory, but only 1.0 GB are free" in refusal(read_weights_file, path)


# ---- small files that unpack to large ones --------------------------------------------------------------------------


def packed(path: Path, member: str, content: bytes, size: int) -> Path:
    """A ZIP file with a member that begins like this and unpacks to so many bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        file.write(content)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return path


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_arrays_that_unpack_to_more_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.npz", "key.npy", npy_header((100 * 2**20,)), 100 * 2**20)
    assert len(load_npz(path, ["key"], 10**9)[0]) == 100 * 2**20
    monkeypatch.setattr(reading, "free_memory_bytes", lambda: 60_000_000)
    with pytest.raises(TooLargeError, match=r"needs 0\.1 GB of memory, but only 0\.1 GB are free"):
        load_npz(path, ["key"], 10**9)
    assert load_saved_maps(path, "key") is None and "0.1 GB" in refusal(read_embeddings, path)
    assert "0.1 GB" in refusal(read_weights_file, path.rename(tmp_path / "a.pth"))


def test_an_array_that_claims_to_be_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it is no complete \.npz file"):
        load_npz(packed(tmp_path / "a.npz", "key.npy", npy_header((10**15,)), 0), ["key"], 10**9)


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", key=np.array([{}], dtype=object), other=np.zeros(3))
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (content, b"", content[:100], content[:-30], b"x" * 100):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"."):
            load_npz(tmp_path / "a.npz", ["key"], 10**9)


def test_json_that_needs_more_memory_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "[" + "[]," * 800_000 + "[]]"
    assert len(parse_json(text)) == 800_001
    monkeypatch.setattr(reading, "free_memory_bytes", lambda: 10**8)
    with pytest.raises(TooLargeError, match=r"needs 0\.1 GB of memory, but only 0\.1 GB are free"):
        parse_json(text)
    (tmp_path / "labels.json").write_text(text)
    assert "labels.json cannot be read: it needs 0.1 GB" in refusal(baseline.image_table, tmp_path / "labels.json")


@pytest.mark.parametrize("text", ["<a>" * 10**6, "<a><b/>" * 200, "<a>" * 101 + "</a>" * 101])
def test_xml_that_is_nested_too_deeply_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.xml").write_text(text)
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parse_xml(tmp_path / "labels.xml")
    assert "labels.xml is neither a table nor an archive" in refusal(baseline.image_table, tmp_path / "labels.xml")


def test_xml_of_many_elements_is_refused_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.xml").write_text("<annotations>" + '<a b=""/>' * 400_000 + "</annotations>")
    assert len(parse_xml(tmp_path / "labels.xml")) == 400_000
    monkeypatch.setattr(reading, "free_memory_bytes", lambda: 10**8)
    assert "it needs 0.1 GB of memory, but only 0.1" in refusal(baseline.image_table, tmp_path / "labels.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_a_document_type_is_refused_wherever_it_is(encoding: str, tmp_path: Path) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?><!--{'-x' * 5000}--><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"
    (tmp_path / "labels.xml").write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match="it has a document type"):
        parse_xml(tmp_path / "labels.xml")
