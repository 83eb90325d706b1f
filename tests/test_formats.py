"""Images that are not ordinary ones of 8 bits: each reader against another one, or against the original pixels."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pillow_heif
import pydicom
import pytest
import tifffile
from commands import call
from insects import draw
from pictures import P3, SRGB, cmyk_profile, gamma_profile, packed_tiff, to_srgb, with_chunk
from PIL import Image, ImageCms
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

import baseline
from baseline.data.audit.findings import audit
from baseline.data.audit.readable import drop_unreadable
from baseline.data.audit.scan import scan_image
from baseline.data.formats.jpeg_xl import size_of
from baseline.data.image import load_image, load_square, unreadable_reason
from baseline.data.table import image_table, summarize_source
from baseline.errors import DataError, RecipeError, install_command
from baseline.parallel.memory import MemoryLimit
from baseline.progress import Progress


def pixels(source: Any, **options: Any) -> np.ndarray:
    return np.asarray(load_image(source, **options)).astype(int)


def gray(source: Any, **options: Any) -> np.ndarray:
    loaded = pixels(source, **options)
    assert (loaded == loaded[..., :1]).all()
    return loaded[..., 0]


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255


def assert_close(actual: np.ndarray, expected: np.ndarray, levels: float = 1) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= levels


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def png(values: np.ndarray) -> bytes:
    """Encoded by OpenCV: gray, or RGB of 8 or 16 bits."""
    return cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 65536, (40, 56, 3), dtype=np.uint16)
GRAYS = RNG.integers(0, 65536, (40, 56), dtype=np.uint16)
INSECT = draw("ants", 0)


class Recorder(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


# ---- formats --------------------------------------------------------------------------------------------------------


def test_heic_is_read_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    heif = pillow_heif.from_pillow(INSECT)
    buffer = io.BytesIO()
    heif.save(buffer, quality=-1, chroma=444, exif=exif.tobytes(), matrix_coefficients=0)
    assert_close(pixels(buffer.getvalue()), np.rot90(np.asarray(INSECT), -1).astype(int), 2)


@pytest.mark.skipif(find_spec("PIL.AvifImagePlugin") is None, reason="Pillow reads AVIF from version 11.3 on")
def test_avif_is_read_as_by_libavif() -> None:
    content = encode(INSECT, "AVIF", quality=90)
    assert_close(pixels(content), imagecodecs.avif_decode(content).astype(int), 2)


def test_avif_with_a_pillow_that_is_too_old_is_named_with_how_to_install_it() -> None:
    content = imagecodecs.avif_encode(np.asarray(INSECT))
    code = (
        "import sys; from importlib.machinery import PathFinder\n"
        "class Hide(PathFinder):\n"
        "    find_spec = classmethod(lambda cls, name, *rest: None if name == 'PIL.AvifImagePlugin' else "
        "PathFinder.find_spec(name, *rest))\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Hide\n"
        "from baseline.data.image import load_image, unreadable_reason\n"
        "for content in (sys.stdin.buffer.read(), b'no image'):\n"
        "    try: load_image(content)\n"
        "    except OSError as error: print(unreadable_reason(error))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert ended.stdout.decode() == f"AVIF needs Pillow 11.3 or newer: {install_command('avif')}\nnot an image\n"


@pytest.mark.parametrize("container", [False, True])
def test_jpeg_xl(container: bool) -> None:
    content = imagecodecs.jpegxl_encode(np.asarray(INSECT), lossless=True, usecontainer=container)
    assert_close(pixels(content), np.asarray(INSECT).astype(int), 0)
    assert size_of(content) == INSECT.size


@pytest.mark.parametrize(("width", "height"), [(8, 8), (256, 192), (100, 100), (1000, 700), (3840, 2160), (7, 20_000)])
def test_the_size_of_a_jpeg_xl_file_is_known_before_it_is_decoded(width: int, height: int) -> None:
    content = imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint8), lossless=True, effort=1)
    assert size_of(content) == (width, height)


def dicom(values: np.ndarray, bits: int = 12, **tags: Any) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = *values.shape, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """DICOM PS3.3, C.11.2.1.2.1."""
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    shown[values <= center - 0.5 - (width - 1) / 2] = 0
    shown[values > center - 0.5 + (width - 1) / 2] = 255
    return shown


def test_dicom_is_shown_in_its_window() -> None:
    stored = (GRAYS >> 4).astype(np.int16)
    ct = stored.astype(float) - 1024  # Hounsfield units
    content = dicom(stored, 16, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 600], WindowWidth=[400, 1500])
    assert_close(gray(content), window(ct, 40, 400))
    exact = dicom(stored, 16, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    assert_close(gray(exact), scaled(stored, 1500, 2500))
    sigmoid = dicom(stored, 16, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    assert_close(gray(sigmoid), 255 / (1 + np.exp(-4 * (stored - 2000.0) / 1000)))
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 10], (np.arange(4096) // 4)[::-1].astype("<u2").tobytes()
    inverted = dicom(GRAYS >> 4, VOILUTSequence=[lut])
    assert_close(gray(inverted), scaled((4095 - (GRAYS >> 4)) // 4, 0, 1023))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_dicom_without_a_window_has_the_range_of_its_bits(bits: int) -> None:
    stored = GRAYS >> (16 - bits)
    assert_close(gray(dicom(stored, bits)), scaled(stored, 0, 2**bits - 1))
    white_is_low = dicom(stored, bits, PhotometricInterpretation="MONOCHROME1")
    assert_close(gray(white_is_low), 255 - scaled(stored, 0, 2**bits - 1))
    signed = (stored.astype(int) - 2 ** (bits - 1)).astype(np.int16)
    assert_close(gray(dicom(signed, bits)), scaled(stored, 0, 2**bits - 1))


@pytest.mark.parametrize("white_is_low", [False, True])
def test_dicom_that_is_tiff_as_well_is_shown_in_its_window(tmp_path: Path, white_is_low: bool) -> None:
    content = dicom(GRAYS >> 4, PhotometricInterpretation=f"MONOCHROME{2 - white_is_low}", WindowCenter=1000,
                    WindowWidth=1001)  # fmt: skip
    entries = ((256, GRAYS.shape[1]), (257, GRAYS.shape[0]), (258, 16), (259, 1), (262, 1 - white_is_low),
               (273, content.index((GRAYS >> 4).astype("<u2").tobytes())), (277, 1), (278, GRAYS.shape[0]),
               (279, 2 * GRAYS.size))  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in entries)
    content = struct.pack("<2sHI", b"II", 42, len(content)) + content[8:] + directory + bytes(4)
    assert Image.open(io.BytesIO(content)).format == "TIFF"
    right = scaled(GRAYS >> 4, 499.5, 1499.5)  # center - 0.5, plus and minus half of width - 1
    assert_close(gray(content), 255 - right if white_is_low else right)
    (tmp_path / "a.dcm").write_bytes(content)
    assert_close(gray(tmp_path / "a.dcm"), 255 - right if white_is_low else right)


def test_the_first_frame_of_dicom_is_used() -> None:
    stored = np.stack([GRAYS >> 4, np.zeros_like(GRAYS)])
    two = dicom(stored[0], NumberOfFrames=2, PixelData=stored.astype("<u2").tobytes())
    assert_close(gray(two), scaled(stored[0], 0, 4095))
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(dicom(GRAYS >> 4)[:400])


# ---- more than 8 bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_samples_have_the_range_that_the_file_declares(bits: int) -> None:
    values = GRAYS >> (16 - bits)
    content = packed_tiff(values, bits)
    assert np.array_equal(tifffile.imread(io.BytesIO(content)), values)
    assert_close(gray(content), scaled(values, 0, 2**bits - 1))


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("how", ["repeated", "zeros", "as they are"])
def test_the_chunk_sbit_of_a_png_is_followed(bits: int, how: str) -> None:
    values = GRAYS >> (16 - bits)
    shift = 16 - bits
    samples = {"repeated": values << shift | values >> (bits - shift), "zeros": values << shift, "as they are": values}
    content = with_chunk(png(samples[how].astype(np.uint16)), b"sBIT", bytes([bits]))
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), -1), samples[how])
    assert_close(gray(content), scaled(values, 0, 2**bits - 1))
    color = COLORS >> shift
    content = with_chunk(png(color), b"sBIT", bytes([bits] * 3))
    assert_close(pixels(content), scaled(color, 0, 2**bits - 1))


def test_sixteen_bits_of_color_keep_both_bytes() -> None:
    assert_close(pixels(png(COLORS)), scaled(COLORS, 0, 65535), 0.5)
    assert_close(pixels(png(COLORS >> 4), value_range=(0, 4095)), scaled(COLORS >> 4, 0, 4095), 0.5)
    opacity = np.full((*GRAYS.shape, 1), 65535, np.uint16)
    opacity[:20] = 0
    with_opacity = np.concatenate([COLORS, opacity], axis=2)
    expected = np.where(opacity > 0, scaled(COLORS, 0, 65535), 255)
    assert_close(pixels(cv2.imencode(".png", with_opacity[..., [2, 1, 0, 3]])[1].tobytes()), expected, 0.5)
    gray_with_opacity = imagecodecs.png_encode(np.concatenate([GRAYS[..., None], opacity], axis=2))
    assert_close(gray(gray_with_opacity), np.where(opacity[..., 0] > 0, scaled(GRAYS, 0, 65535), 255), 0.5)
    clear = with_chunk(png(np.where(GRAYS > 30000, 255, GRAYS).astype(np.uint16)), b"tRNS", struct.pack(">H", 255))
    assert_close(gray(clear), np.where(GRAYS > 30000, 255, scaled(GRAYS, 0, 65535)), 0.5)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_every_kind(compression: str | None, order: str) -> None:
    options: dict[str, Any] = {"compression": compression, "byteorder": order}
    full = scaled(GRAYS, 0, 65535)
    assert_close(gray(tiff(GRAYS, **options)), full, 0.5)
    assert_close(gray(tiff(GRAYS, photometric="miniswhite", **options)), 255 - full, 0.6)
    assert_close(pixels(tiff(COLORS, photometric="rgb", **options)), scaled(COLORS, 0, 65535), 0.5)
    planar = np.ascontiguousarray(np.moveaxis(COLORS, 2, 0))
    content = tiff(planar, photometric="rgb", planarconfig="separate", **options)
    assert_close(pixels(content), scaled(COLORS, 0, 65535), 0.5)
    unsigned = GRAYS.astype(np.uint32) * 65537
    assert_close(gray(tiff(unsigned, **options), value_range=(0, 2**32 - 1)), full, 0.6)
    signed = (GRAYS.astype(int) - 32768).astype(np.int16)
    assert_close(gray(tiff(signed, **options), value_range=(-32768, 32767)), full, 0.5)
    assert_close(gray(tiff(signed.astype(np.int32), **options), value_range=(-32768, 32767)), full, 0.5)
    bytes_with_sign = ((GRAYS >> 8).astype(int) - 128).astype(np.int8)
    assert_close(gray(tiff(bytes_with_sign, **options), value_range=(-128, 127)), (GRAYS >> 8).astype(int), 0)
    for kind in (np.float32, np.float64):
        floats = (GRAYS / 65535).astype(kind)
        assert_close(gray(tiff(floats, **options)), full, 0.6)
    floats = (COLORS / 65535).astype(np.float32)
    assert_close(pixels(tiff(floats, photometric="rgb", **options)), scaled(COLORS, 0, 65535), 0.6)


def test_premultiplied_colors_are_divided_by_their_opacity() -> None:
    opacity = np.full((*GRAYS.shape, 1), 32768, np.uint16)
    content = tiff(np.concatenate([COLORS // 2, opacity], 2), photometric="rgb", extrasamples=["assocalpha"])
    assert_close(pixels(content), scaled(COLORS, 0, 65535) / 2 + 127.5, 1.5)


def test_a_tiff_of_many_bands_is_refused_by_what_it_is() -> None:
    content = tiff(np.zeros((8, 8, 13), np.uint16), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match="13 bands"):
        load_image(content)


@pytest.mark.parametrize("marker", [np.nan, np.inf, -9999, -3.4e38])
def test_missing_values_do_not_wreck_an_image(tmp_path: Path, marker: float) -> None:
    floats = (GRAYS / 65535 * 40 + 5).astype(np.float32)
    with_marker = floats.copy()
    with_marker[3:9, 5:20] = marker
    for name, values in (("a", floats), ("b", with_marker)):
        (tmp_path / f"{name}.tif").write_bytes(tiff(values))
    (low, high), _ = range_and_images([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert low == pytest.approx(5, abs=0.1) and high == pytest.approx(45, abs=0.1)
    valid = with_marker == floats
    for name in "ab":
        assert_close(gray(tmp_path / f"{name}.tif", value_range=(low, high))[valid], scaled(floats, 5, 45)[valid], 2)


def range_and_images(paths: list[Path]) -> tuple[tuple[float, ...], pd.DataFrame]:
    table = pd.DataFrame({"path": list(map(str, paths)), "label": "a", "split": None, "group": None})
    table.loc[0::2, "label"] = "b"
    report = audit(table)
    return report.value_range, report.images


@pytest.mark.parametrize("write", [png, tiff])
def test_one_range_for_all_images_from_all_of_them(tmp_path: Path, write: Any) -> None:
    dark, bright = GRAYS >> 8, GRAYS >> 4
    dark[0, 0] = 256
    for name, values in (("a", dark), ("b", np.minimum(dark, 255)), ("c", bright)):
        (tmp_path / name).write_bytes(write(values))
    value_range, _ = range_and_images([tmp_path / name for name in "abc"])
    assert value_range == (0, 4095)
    for name, values in (("a", dark), ("c", bright)):
        assert_close(gray(tmp_path / name, value_range=value_range), scaled(values, 0, 4095), 0.5)
    a, b = (gray(tmp_path / name, value_range=value_range) for name in "ab")
    assert np.abs(a - b).max() <= 1


def test_a_few_hot_pixels_do_not_change_the_range(tmp_path: Path) -> None:
    for number in range(4):
        values = np.random.default_rng(number).integers(100, 1000, (60, 60), dtype=np.uint16)
        values[7, number] = 65535
        (tmp_path / f"{number}.png").write_bytes(png(values))
    value_range, images = range_and_images(sorted(tmp_path.glob("*.png")))
    assert value_range == (0, 1023) and (images["value_high"] < 1000).all()


def test_integers_and_floats_have_no_common_range(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(GRAYS >> 4))
    (tmp_path / "x.tif").write_bytes(tiff((GRAYS / 65535 * 3).astype(np.float32)))
    value_range, images = range_and_images(sorted(tmp_path.iterdir()))
    assert value_range == (0, 4095)
    assert images["reason"].tolist()[:4] == [""] * 4 and "not integers" in images["reason"].iloc[4]


def test_values_above_the_range_of_the_model_are_refused_not_white() -> None:
    with pytest.raises(ValueError, match=r"of its values are above 4095"):
        load_image(png(GRAYS), value_range=(0, 4095))
    with pytest.raises(ValueError, match="of no declared range"):
        load_image(tiff(GRAYS.astype(np.uint32)))
    with pytest.raises(ValueError, match="floats from 0 to 300, of no declared range"):
        load_image(tiff(np.array([[0, 300]], np.float32)))


def test_floats_without_a_range_follow_a_convention_or_are_refused() -> None:
    floats = (GRAYS / 65535).astype(np.float32)
    assert_close(gray(tiff(floats)), scaled(floats, 0, 1), 0.6)
    assert_close(gray(tiff(floats * 255)), scaled(floats, 0, 1), 0.6)
    assert_close(gray(Image.fromarray(floats * 255)), scaled(floats, 0, 1), 0.6)
    with pytest.raises(ValueError, match=r"floats from .* to 256, of no declared range"):
        load_image(tiff(np.where(floats == floats.max(), 256, floats * 255).astype(np.float32)))


def test_a_run_keeps_its_range_and_the_model_uses_it(no_page: None, tmp_path: Path, small: baseline.Recipe) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            values = np.asarray(draw(name, number).convert("L")).astype(np.uint16) * 16
            (tmp_path / "images" / name / f"{number}.png").write_bytes(png(values))
    recorder = Recorder()
    done = baseline.make_baseline(tmp_path / "images", small, out=tmp_path / "run", progress=recorder)
    assert done.recipe.data.value_range == (0, 4095)
    assert any("16 images of more than 8 bits; black is 0, white is 4095" in line for line in recorder.lines)
    assert json.loads((tmp_path / "run/model/model.json").read_text())["value_range"] == [0, 4095]
    assert done.model.check() < 1e-4
    image = tmp_path / "images/ants/1.png"
    size = done.model.decoded_size
    expected = load_square(draw("ants", 1).convert("L"), size, "squish").astype(int)
    assert np.abs(done.model.load_square(image) - expected).max() <= 2
    predicted = done.predict(str(image))["confidence"].iloc[0]
    in_8_bits = tmp_path / "8.png"
    draw("ants", 1).convert("L").save(in_8_bits)
    assert done.predict(str(in_8_bits))["confidence"].iloc[0] == pytest.approx(predicted, abs=0.02)
    assert np.asarray(done.model.learner.dls.valid.after_item is not None)
    again = baseline.load(tmp_path / "run")
    assert again.value_range == (0, 4095)


def test_a_range_that_is_given_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(GRAYS >> 4))
    (tmp_path / "b.png").write_bytes(png(GRAYS >> 5))
    table = pd.DataFrame({"path": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "label": ["a", "b"],
                          "split": None, "group": None})  # fmt: skip
    assert audit(table, value_range=(0, 8191)).value_range == (0, 8191)
    assert drop_unreadable(table, value_range=(0, 8191))[2] == (0, 8191)
    assert baseline.Recipe().changed(value_range="0,8191").data.value_range == (0, 8191)
    with pytest.raises(RecipeError, match="value_range is '9,3'"):
        baseline.Recipe().changed(value_range="9,3")


def test_a_jpeg_of_12_bits_is_refused_by_what_it_is() -> None:
    content = imagecodecs.jpeg_encode(GRAYS >> 4, bitspersample=12)
    assert imagecodecs.jpeg_decode(content, bitspersample=12).max() > 255
    with pytest.raises(ValueError, match="a JPEG of 12 bits"):
        load_image(content)


# ---- color ----------------------------------------------------------------------------------------------------------


def test_colors_of_another_profile_become_srgb() -> None:
    values = np.asarray(INSECT)
    content = encode(INSECT, "PNG", icc_profile=gamma_profile(P3, 2.2, "Wide"))
    assert_close(pixels(content), to_srgb(values, P3, 2.2), 2)
    clear = INSECT.convert("RGBA")
    clear.putalpha(Image.new("L", INSECT.size, 128))
    content = encode(clear, "PNG", icc_profile=gamma_profile(P3, 2.2, "Wide"))
    assert_close(pixels(content), to_srgb(values, P3, 2.2) * 128 / 255 + 127, 2)


def test_pixels_in_srgb_stay_as_they_are() -> None:
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90})):
        plain, tagged = encode(INSECT, kind, **options), encode(INSECT, kind, icc_profile=standard, **options)
        assert np.array_equal(pixels(plain), pixels(tagged))
        assert np.array_equal(pixels(plain), np.asarray(Image.open(io.BytesIO(plain)).convert("RGB")))
    nearly = encode(INSECT, "PNG", icc_profile=gamma_profile(SRGB, 2.2, "Nearly sRGB"))
    assert_close(pixels(nearly), to_srgb(np.asarray(INSECT), SRGB, 2.2), 2)
    damaged = encode(INSECT, "PNG", icc_profile=b"no profile at all")
    assert np.array_equal(pixels(damaged), np.asarray(INSECT))


def test_cmyk_is_read_through_its_profile() -> None:
    inks = INSECT.convert("CMYK")
    profile = cmyk_profile()
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        content = encode(inks, kind, icc_profile=profile, **options)
        opened = Image.open(io.BytesIO(content))
        srgb = ImageCms.createProfile("sRGB")
        expected = ImageCms.profileToProfile(opened, io.BytesIO(profile), srgb, outputMode="RGB")
        assert_close(pixels(content), np.asarray(expected).astype(int), 0)
        assert np.abs(pixels(content) - np.asarray(opened.convert("RGB"))).mean() > 20


def test_profiles_are_a_finding(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    for number in range(3):
        Image.open(folder / f"ants/0{number}.jpg").save(folder / f"ants/0{number}.jpg", quality=95,
                                                         icc_profile=gamma_profile(P3, 2.2, "Wide colors"))  # fmt: skip
    findings = audit(image_table(folder)).findings.set_index("finding")
    assert findings.loc["color profiles", "words"] == "Wide colors 3" and findings.loc["color profiles", "images"] == 3


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_side_that_is_too_long_is_refused_before_decoding() -> None:
    head = struct.pack(">IIBBBBB", 64_000_000, 1, 8, 0, 0, 0, 0)
    content = with_chunk(png(np.zeros((1, 1), np.uint8)), b"none", b"")
    content = content[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + content[33:]
    for read in (load_image, lambda content: load_square(content, 32, "squish")):
        with pytest.raises(Image.DecompressionBombError) as caught:
            read(content)
        assert unreadable_reason(caught.value) == "64,000,000 x 1 pixels, more than 65,536 on a side"
    for long in (tiff(np.zeros((1, 70_000), np.uint32)),
                 imagecodecs.jpegxl_encode(np.zeros((1, 70_000), np.uint8), lossless=True, effort=1)):  # fmt: skip
        with pytest.raises(Image.DecompressionBombError, match="70,000 x 1 pixels, more than 65,536 on a side"):
            load_image(long)


def test_headers_of_rare_formats_that_claim_too_much_are_refused_before_decoding() -> None:
    floats = tiff(np.zeros((1, 1), np.float64))
    with tifffile.TiffFile(io.BytesIO(floats)) as opened:
        width = opened.pages[0].tags["ImageWidth"].valueoffset
    wide = floats[:width] + struct.pack("<I", 64_000_000) + floats[width + 4 :]
    long = imagecodecs.jpegxl_encode(np.zeros((1, 70_000), np.uint8), lossless=True, effort=1)
    for content, message in (
        (wide, "64,000,000 x 1 pixels, more than 65,536 on a side"),
        (long[:20], "70,000 x 1 pixels, more than 65,536 on a side"),
        (dicom(GRAYS >> 4, Rows=65_535, Columns=65_535), "65,535 x 65,535 pixels, more than"),
    ):
        with pytest.raises(Image.DecompressionBombError, match=message):
            load_image(content)


def test_what_decoders_log_about_damaged_files_is_not_shown(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(2):
            INSECT.rotate(number * 90).save(tmp_path / name / f"{number}.png")
    content = bytearray(tiff(np.zeros((8, 8), np.float64)))
    with tifffile.TiffFile(io.BytesIO(content)) as opened:
        content[opened.pages[0].tags["Software"].offset + 2] = 99  # no type of values
    (tmp_path / "ants" / "damaged.tif").write_bytes(content)
    (tmp_path / "bees" / "damaged.dcm").write_bytes(dicom(GRAYS >> 4, StudyDate="yesterday"))
    ended = call("audit", tmp_path, "--quiet")
    assert ended.returncode == 0 and ended.stderr == ""


def with_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated up to a number of scans, with a video behind its end."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (scans - content.count(b"\xff\xda")) + b"\xff\xd9" + b"\xff\xda\x00\x02" * 500


def in_dicom(jpeg: bytes) -> bytes:
    """A DICOM file that calls the JPEG an ordinary one, of fewer pixels."""
    gray = np.zeros((8, 8), np.uint8)
    content = pydicom.dcmread(io.BytesIO(dicom(gray, bits=8, BitsAllocated=8, SamplesPerPixel=3)))
    content.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    content.PhotometricInterpretation, content.PlanarConfiguration = "YBR_FULL_422", 0
    content.PixelData = pydicom.encaps.encapsulate([jpeg])
    content["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, content, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_a_dicom_file_with_a_jpeg_that_pillow_does_not_know_is_read(name: str) -> None:
    path = str(get_testdata_file(name, download=False))
    pixels = pydicom.dcmread(path).pixel_array
    height, width = pixels.shape
    assert load_image(path).size == (width, height)


def test_a_jpeg_of_very_many_scans_is_refused_before_decoding(tmp_path: Path) -> None:
    assert load_image(with_scans(100)).size == (64, 64)
    (tmp_path / "many.jpg").write_bytes(with_scans(101))
    for content in (with_scans(101), str(tmp_path / "many.jpg"), in_dicom(with_scans(101)), with_scans(200_000)):
        for read in (load_image, lambda content: load_square(content, 32, "squish")):
            with pytest.raises(Image.DecompressionBombError) as caught:
                read(content)
            assert unreadable_reason(caught.value) == "a JPEG of 64 x 64 pixels in more than 100 scans"
    large = with_scans(30)
    size = large.index(b"\xff\xc2") + 5
    with pytest.raises(Image.DecompressionBombError, match="10,000 x 10,000 pixels in more than 20 scans"):
        load_image(large[:size] + struct.pack(">HH", 10_000, 10_000) + large[size + 4 :])


def test_readers_wait_for_memory() -> None:
    limit, used = MemoryLimit(100), []

    def read() -> None:
        with limit.reserve(60), limit.reserve(90):  # a thread does not wait for itself
            used.append(limit.used_bytes)

    threads = [Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert used == [60] * 20 and limit.used_bytes == 0
    with limit.reserve(10**12):
        assert limit.used_bytes == 100


def test_decoding_waits_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = MemoryLimit(1000)
    monkeypatch.setattr(baseline.data.image, "memory", limit)
    INSECT.save(path := tmp_path / "image.jpg")
    for read in (load_image, scan_image, lambda path: load_square(path, 32, "squish")):
        thread = Thread(target=read, args=[str(path)])
        with limit.reserve(900):
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
        thread.join(10)
        assert not thread.is_alive()


def test_no_copy_of_a_whole_image_in_floats() -> None:
    code = (
        "import io, resource, sys, numpy as np, tifffile;"
        "from baseline.data.image import load_image;"
        "values = np.zeros((6000, 6000), np.float32); values[0, 0] = 1; buffer = io.BytesIO();"
        "tifffile.imwrite(buffer, values); content = buffer.getvalue(); del values, buffer;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "load_image(content);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 6000 * 6000 * 12  # one copy in float64 and one in float32 would exceed it


# ---- packages, endings and names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "content", "package", "extra"),
    [
        ("pillow_heif", b"\0\0\0\x18ftypheic" + bytes(60), "pillow-heif", "heif"),
        ("pillow_jxl", imagecodecs.jpegxl_encode(np.zeros((9, 9), np.uint8)), "pillow-jxl-plugin", "jxl"),
        ("pydicom", dicom(GRAYS >> 4), "pydicom", "dicom"),
        ("tifffile", tiff(COLORS.astype(np.float32), photometric="rgb"), "tifffile", "tiff"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, content: bytes, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OSError, match=rf"needs {package}: pip install .*\[{extra}\]'"):
        load_image(content)
    folder = shutil.copytree(images, tmp_path / "images")
    for number in range(2):
        (folder / f"ants/x{number}.dcm").write_bytes(content)
    report = audit(image_table(folder))
    finding = report.findings.set_index("finding").loc["missing package"]
    assert finding["images"] == 2 and finding["words"].startswith("2 images: ") and package in finding["words"]
    assert finding["answer"] == install_command(extra)
    assert "unreadable" not in report.findings["finding"].tolist() and len(report.unreadable) == 2


def test_images_that_became_readable_are_scanned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.dcm").write_bytes(dicom(GRAYS >> (4 if name == "a" else 5)))
    INSECT.save(tmp_path / "d.png")
    paths = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(DataError):
            range_and_images(paths[:3])
    _, scanned = range_and_images(paths)
    assert (scanned["reason"] == "").all()


def test_files_without_a_known_ending_are_judged_by_their_first_bytes(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    before = len(image_table(folder))
    for name, kind in (("0001", "JPEG"), ("b.img", "PNG"), ("c.bin", "BMP"), ("d.x", "WEBP"), ("e.data", "TIFF"),
                       ("f.f", "GIF"), ("h.h", "JPEG2000")):  # fmt: skip
        (folder / "ants" / name).write_bytes(encode(INSECT, kind))
    (folder / "ants/i.i").write_bytes(imagecodecs.jpegxl_encode(np.asarray(INSECT)))
    (folder / "ants/k").write_bytes(dicom(GRAYS >> 4))
    if has_avif := find_spec("PIL.AvifImagePlugin") is not None:
        (folder / "ants/g.g").write_bytes(encode(INSECT, "AVIF"))
    os.mkfifo(folder / "ants/pipe")  # opening it would wait forever
    for name in ("movie.mp4", "other.mp4", "notes.txt", "README"):
        (folder / "ants" / name).write_bytes(b"no image")
    table = image_table(folder)
    assert len(table) == before + 9 + has_avif
    assert "5 other files ignored: 2 .mp4, 2 without an ending, 1 .txt" in summarize_source(table)[4]
    assert (audit(table).images["reason"] == "").all()


def test_predict_says_what_it_passes_over(images: Path, tmp_path: Path) -> None:
    from baseline.data.sources.image_list import list_images

    folder = shutil.copytree(images, tmp_path / "images")
    for name in ("a.mp4", "b.mp4", "c.pdf", "d.txt"):
        (folder / name).write_bytes(b"%PDF")
    recorder = Recorder()
    paths, total = list_images([str(folder)], progress=recorder)
    assert len(list(paths)) == total
    assert recorder.lines == [f"{folder}: {total} images; 4 other files ignored: 2 .mp4, 1 .pdf, 1 .txt"]
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    recorder.lines.clear()
    list_images([archive], progress=recorder)
    assert recorder.lines == [f"{archive}: {total} images; 4 other files ignored: 2 .mp4, 1 .pdf, 1 .txt"]


def test_names_with_carriage_returns_and_bytes_that_are_no_text(
    images: Path, tmp_path: Path, small: baseline.Recipe
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    for number, name in enumerate(["a\rb.jpg", "c\r\nd.jpg", "e\nf.jpg"]):
        INSECT.rotate(number * 30).save(folder / "ants" / name)
    Path(os.fsdecode(os.fsencode(folder) + b"/ants/\xff.jpg")).write_bytes((folder / "ants/00.jpg").read_bytes())
    done = baseline.make_baseline(folder, small, out=tmp_path / "run", progress=Progress())
    split = pd.read_csv(tmp_path / "run/split.csv")
    assert {f"{folder}/ants/a\rb.jpg", f"{folder}/ants/c\r\nd.jpg", f"{folder}/ants/e\nf.jpg"} <= set(split["path"])
    recipe = small.changed(split_file=str(tmp_path / "run/split.csv"))
    from baseline.data.prepare import prepare

    again = prepare(folder, recipe, Progress()).table
    assert again.sort_values("path")["split"].tolist() == split.sort_values("path")["split"].tolist()
    from baseline.data.sources.image_list import list_images
    from baseline.inference.batch import write_predictions
    from baseline.inference.output import PredictOptions

    paths, _ = list_images([str(folder / "ants")])
    write_predictions(done.model, paths, tmp_path / "out.csv", PredictOptions(tta=False))
    rows = pd.read_csv(tmp_path / "out.csv")
    assert f"{folder}/ants/a\rb.jpg" in set(rows["path"]) and rows["error"].isna().all()


def test_two_spellings_of_a_class_are_joined_and_said(images: Path, tmp_path: Path) -> None:
    for folder, source in (("caf\u00e9", "ants"), ("cafe\u0301", "bees"), ("other", "ants")):
        shutil.copytree(images / "train" / source if (images / "train").is_dir() else images / source,
                        tmp_path / "images" / folder)  # fmt: skip
    table = image_table(tmp_path / "images")
    assert sorted(table["label"].unique()) == ["caf\u00e9", "other"]
    assert "two spellings (NFC and NFD) of 'caf\u00e9' joined" in summarize_source(table)[4]


# ---- flaws ----------------------------------------------------------------------------------------------------------


def test_blank_and_cut_off_images_are_findings(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    Image.new("RGB", (90, 60), (200, 10, 10)).save(folder / "ants/blank.jpg")
    Image.new("L", (90, 60), 255).save(folder / "ants/blank.png")
    checks = np.indices((64, 64)).sum(0) % 2 * 255  # of one color where a JPEG is decoded in an eighth of its size
    Image.fromarray(checks.astype(np.uint8)).save(folder / "ants/checks.jpg", quality=95)
    Image.new("RGB", (90, 60), (128, 128, 128)).save(folder / "bees/gray.jpg")
    content = encode(INSECT, "JPEG", quality=95)
    (folder / "bees/cut.jpg").write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    half = content[: len(content) * 2 // 3]
    (folder / "bees/zeros.jpg").write_bytes(half + bytes(len(content) - len(half)))
    report = audit(image_table(folder))
    flaws = {
        Path(path).name: flaw for path, flaw in zip(report.images["path"], report.images["flaw"], strict=True) if flaw
    }
    readable = report.images.set_index(report.images["path"].map(lambda path: Path(path).name))["reason"]
    expected = {"blank.jpg": "blank", "blank.png": "blank", "gray.jpg": "blank", "cut.jpg": "cut off"}
    if not readable["zeros.jpg"]:
        expected["zeros.jpg"] = "cut off"
    assert flaws == expected
    findings = report.findings.set_index("finding")
    assert findings.loc["blank", "images"] == 3 and "cut.jpg" in findings.loc["cut off", "words"]
