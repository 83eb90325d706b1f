"""Too little memory is reported as such, and never as a damaged image."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401  # registers the format
import pydicom
import pytest
from decoders import decoder_processes
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from starlette.testclient import TestClient

from baseline.data.image import unreadable_reason
from baseline.deploy.server.app import create_app
from baseline.errors import MemoryShortageError, unusable_image

SHORT_OF_MEMORY = """
import gc, resource, sys
from pathlib import Path
import baseline, pydicom.pixels.processing, pydicom.pixels.utils, pillow_jxl
from PIL import JpegImagePlugin, Jpeg2KImagePlugin, PngImagePlugin, WebPImagePlugin
from baseline.data.audit.scan import scan_images
from baseline.data.image import load_image
from baseline.inference.inputs import load_squares
load_image(sys.argv[1])
for path in sys.argv[2:]:
    megabytes = int(path.split(".")[-2])
    for use in ("audit", "predict"):
        gc.collect()
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + megabytes * 1_000_000, -1))
        try:
            if use == "audit":
                print("left out:", *scan_images([path], baseline.Progress()).columns["reason"])
            else:
                print("damaged:", load_squares(path, [(48, "squish", (0.0, 65535.0), None)]))
        except baseline.errors.BaselineError as error:
            print("error:", error)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


def dicom_of_zeros(side: int) -> Dataset:
    """A DICOM file of 16-bit zeros, compressed by run lengths."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.Rows = file.Columns = side
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    plane = bytes([129, 0]) * (side**2 // 128 + 1)  # 128 zeros
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(plane)
    file.PixelData = encapsulate([header.tobytes() + plane + plane])
    file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
    return file


def large_images(folder: Path) -> list[Path]:
    """Images whose decoders report a lack of memory in ways of their own, as if the image were damaged, and the
    megabytes of memory, in their names, with which they do so."""
    image = Image.new("RGB", (3500, 3500), "red")
    for name in ("a.20.png", "a.20.bmp", "a.20.webp", "a.20.jp2", "b.70.jp2", "b.20.jxl"):
        image.save(folder / name)
    (folder / "a.20.jxl").write_bytes(imagecodecs.jpegxl_encode(np.zeros((3500, 3500), np.uint16), effort=1))
    dicom_of_zeros(3500).save_as(folder / "a.20.dcm", enforce_file_format=True)
    dicom_of_zeros(11_000).save_as(folder / "b.600.dcm", enforce_file_format=True)
    return sorted(folder.glob("*.*.*"))


def test_too_little_memory_is_said_as_such(images: Path, tmp_path: Path) -> None:
    paths = large_images(tmp_path)
    words = [sys.executable, "-c", SHORT_OF_MEMORY, str(images / "ants" / "00.jpg"), *map(str, paths)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)  # a fork has free memory of its own
    answers = ended.stdout.splitlines()
    assert len(answers) == 2 * len(paths) == 18, ended.stderr[-500:]
    said = "error: There is too little memory to decode an image"
    assert [(path.name, answer) for path, answer in zip(np.repeat(paths, 2), answers, strict=True)
            if not answer.startswith(said)] == []  # fmt: skip


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory when reading image file")])
def test_an_error_of_a_decoder_that_lacks_memory_is_no_damage(error: Exception) -> None:
    with pytest.raises(MemoryShortageError) as raised:
        unreadable_reason(error)
    assert unusable_image("image.jpg", raised.value) is raised.value


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not limit memory")
def test_a_server_short_of_memory_asks_to_try_again(tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # with two, an image may meet the first before it is idle

    small = (images / "ants" / "00.jpg").read_bytes()
    buffer = io.BytesIO()
    Image.new("RGB", (1900, 1900)).save(buffer, "PNG")
    with TestClient(create_app(tiny), base_url="http://localhost", raise_server_exceptions=False) as client:
        assert client.post("/predict", files={"image": small}).status_code == 200
        (decoder,) = decoder_processes()
        in_use = int(Path(f"/proc/{decoder}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(decoder, resource.RLIMIT_AS, (in_use + 2_000_000, -1))
        answer = client.post("/predict", files={"image": buffer.getvalue()})
        resource.prlimit(decoder, resource.RLIMIT_AS, (-1, -1))
        assert client.post("/predict", files={"image": buffer.getvalue()}).status_code == 200
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"].startswith("The server has too little memory for the image")
