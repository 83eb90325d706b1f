"""Read every file of a folder, such as the test images of an image library, and compare the pixels with another reader.

python benchmarks/corpus.py FOLDER

TIFF files are compared with tifffile, JPEG XL and animated PNG files with imagecodecs, HEIF and AVIF files with PyAV
(FFmpeg's decoders), DICOM files with SimpleITK, all others with OpenCV. Orientation and color profile are applied to
the reference. Images of more than 8 bits whose files declare no range are read from the lowest to the highest value of
their type, floats from 0 to 1. A decoder that crashes or hangs is counted, and reading continues.
"""

from __future__ import annotations

import os
import re
import struct
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageCms

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"

LEVELS = 4
"""Difference of a sample (0-255) up to which two readers agree."""

PERCENT = 99.9
"""Percentage of samples that have to agree."""

SECONDS = 60
"""Time limit for a file."""


def reference(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the image as another library reads it, H x W or H x W x C, and what is known of it."""
    if content[128:132] == b"DICM":  # some are TIFF files as well
        return from_simpleitk(content)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return from_tifffile(content)
    import imagecodecs

    if content[4:8] == b"ftyp":
        return from_ffmpeg(content)
    if content[:2] == b"\xff\n" or content[4:8] == b"JXL ":
        pixels = imagecodecs.jpegxl_decode(content)
        return (pixels[0] if pixels.ndim == 4 else pixels), {}
    if b"acTL" in content[:200]:  # OpenCV returns another frame than the first
        return imagecodecs.png_decode(content), known_to_pillow(content)
    return from_opencv(content)


def from_tifffile(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    import tifffile

    with tifffile.TiffFile(BytesIO(content)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        pixels = pixels[0] if page.imagedepth > 1 else pixels
        name = page.photometric.name
        if pixels.ndim == 3 and page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, 2)
        bits = page.bitspersample
        if name == "PALETTE":
            pixels = (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
        elif name == "YCBCR" and page.compression not in (6, 7):
            pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        elif name not in ("MINISWHITE", "MINISBLACK", "RGB", "YCBCR"):
            raise ValueError(f"tifffile returns the samples of {name} as they are")
        facts: dict[str, Any] = {"white_is_low": name == "MINISWHITE"}
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        elif bits not in (8, 16, 32, 64) and name != "PALETTE":
            facts["range"] = (0, 2**bits - 1)
        facts["orientation"] = page.tags[274].value if 274 in page.tags else 1
        facts["profile"] = page.tags[34675].value if 34675 in page.tags else None
        facts["premultiplied"] = 1 in page.extrasamples
        facts["opaque"] = page.extrasamples and 0 in page.extrasamples
    return pixels, facts


def from_simpleitk(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """The rescaled values by SimpleITK (GDCM), with the window of the file by the formula of the standard."""
    import tempfile

    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        image = SimpleITK.ReadImage(file.name)
    pixels = SimpleITK.GetArrayFromImage(image)
    pixels = pixels[0] if image.GetDimension() == 3 else pixels
    tags = {key: image.GetMetaData(key).strip() for key in image.GetMetaDataKeys()}
    facts: dict[str, Any] = {"white_is_low": tags.get("0028|0004") == "MONOCHROME1"}
    slope, intercept = float(tags.get("0028|1053") or 1), float(tags.get("0028|1052") or 0)
    if facts["white_is_low"]:  # SimpleITK has inverted the stored values
        pixels = (2 ** int(tags["0028|0101"]) - 1) * slope + 2 * intercept - pixels.astype(float)
    if "0028|1050" in tags and pixels.ndim == 2:
        center, width = (float(tags[key].split("\\")[0]) for key in ("0028|1050", "0028|1051"))
        facts["range"] = (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    elif pixels.ndim == 2 and pixels.dtype != np.uint8:
        bits, is_signed = int(tags["0028|0101"]), tags["0028|0103"] == "1"
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
        facts["range"] = tuple(end * slope + intercept for end in ends)
    return pixels, facts


def from_ffmpeg(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """HEIF and AVIF: the frames from FFmpeg's decoders; cropping, rotation and alpha from the boxes of the file.

    The size, which says how many tiles there are and where their padding ends, is the one that Pillow reports.
    """
    import av
    import pillow_heif

    pillow_heif.register_heif_opener()
    image = Image.open(BytesIO(content))
    turns = sum(turns & 3 for (turns,) in boxes(content, b"irot", ">B")[:1])
    is_avif = content[8:12] in (b"avif", b"avis")
    if is_avif and "A" in image.mode:
        raise ValueError("FFmpeg returns the alpha of AVIF in another range")
    width, height = image.size[::-1] if turns % 2 and not is_avif else image.size  # Pillow rotates AVIF later
    frames: dict[int, np.ndarray] = {}
    with av.open(BytesIO(content)) as file:
        first = [stream.index for stream in file.streams.video if stream.disposition & stream.disposition.default]
        for packet in file.demux():
            with suppress(av.error.InvalidDataError):  # of thumbnails
                for frame in packet.decode():
                    frames.setdefault(packet.stream.index, to_array(frame, is_avif))
    frames = {index: frames[index] for index in sorted(frames, key=lambda index: (index not in first, index))}
    tile = next(iter(frames.values()))
    columns, rows = -(-width // tile.shape[1]), -(-height // tile.shape[0])
    if len(frames) < columns * rows:
        raise ValueError("FFmpeg does not return all tiles")
    tiles = list(frames.values())
    pixels = np.concatenate([np.concatenate(tiles[k * columns :][:columns], axis=1) for k in range(rows)])
    if "A" in image.mode:
        pixels = np.dstack([pixels, tiles[columns * rows][..., :1]])
    left = top = 0
    padded = pixels.shape[:2] != (height, width)
    for _, _, _, _, x, xd, y, yd in boxes(content, b"clap", ">IIIIiIiI")[:1] if padded else ():
        left, top = round((pixels.shape[1] - width) / 2 + x / xd), round((pixels.shape[0] - height) / 2 + y / yd)
    pixels = np.rot90(pixels[top : top + height, left : left + width], turns)
    for (axis,) in boxes(content, b"imir", ">B")[:1]:
        pixels = pixels[:, ::-1] if axis else pixels[::-1]
    return pixels, {"profile": image.info.get("icc_profile")}


def boxes(content: bytes, name: bytes, layout: str) -> list[tuple[Any, ...]]:
    """Return the fields of all boxes of a name in the first megabyte of an ISO media file."""
    starts = [match.end() for match in re.finditer(re.escape(name), content[: 1 << 20])]
    return [struct.unpack_from(layout, content, start) for start in starts]


def to_array(frame: Any, is_avif: bool) -> np.ndarray:
    """Return a frame in RGB; in AVIF, color at half resolution is enlarged between its samples, as libavif does it."""
    import cv2

    if not is_avif or frame.format.name not in ("yuv420p", "yuvj420p"):
        return frame.to_ndarray(format="rgb24")
    planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
    size = (2 * planes[1].shape[1], 2 * planes[1].shape[0])
    luma = planes[0].astype(np.float32)
    u, v = (cv2.resize(plane.astype(np.float32), size)[: frame.height, : frame.width] - 128 for plane in planes[1:])
    if frame.color_range != 2:
        luma, u, v = (luma - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red, blue = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.dstack([r, g, b]).round(), 0, 255).astype(np.uint8)


def from_opencv(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("OpenCV does not read it")
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] > 1 else pixels[..., 0]
    facts = known_to_pillow(content)
    if (start := content.find(b"\xff\x4f\xff\x51")) >= 0 and pixels.dtype == np.uint16:  # JPEG 2000
        facts["range"] = (0, 2 ** ((content[start + 42] & 0x7F) + 1) - 1)
    return pixels, facts


def known_to_pillow(content: bytes) -> dict[str, Any]:
    """Orientation and color profile, which the other readers do not report."""
    image = Image.open(BytesIO(content))
    return {"orientation": image.getexif().get(274, 1), "profile": image.info.get("icc_profile")}


def to_rgb(pixels: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Return the reference in RGB of 8 bits, upright, on white and in sRGB."""
    low, high = facts.get("range") or type_range(pixels.dtype)
    values = np.clip((np.nan_to_num(pixels.astype(np.float64)) - low) / (high - low), 0, 1)
    opacity = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, opacity = values[..., :-1], None if facts.get("opaque") else values[..., -1:]
    if facts.get("white_is_low"):
        values = 1 - values
    if values.ndim == 2 or values.shape[2] == 1:
        values = np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    if facts.get("premultiplied") and opacity is not None:
        values = np.clip(values / np.maximum(opacity, 1e-9), 0, 1)
    colors = (values * 255).round().astype(np.uint8)
    if profile := facts.get("profile"):
        colors = in_srgb(colors, bytes(profile))
    if opacity is not None:
        colors = (colors * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    return turn(colors, int(facts.get("orientation") or 1))


def type_range(dtype: np.dtype) -> tuple[float, float]:
    return (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


def in_srgb(colors: np.ndarray, profile: bytes) -> np.ndarray:
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in ("RGB", "GRAY"):
        return colors
    image = Image.fromarray(colors) if space == "RGB" else Image.fromarray(colors[..., 0])
    mode = "RGB" if space == "RGB" else "L"
    return np.asarray(ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB").apply(image))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn upright, as EXIF defines orientations 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def compare(path: Path) -> dict[str, Any]:
    """Read a file by both readers and return the outcome."""
    from baseline.data.image import load_image, read_image_bytes, unreadable_reason

    content = read_image_bytes(path)
    actual = expected = None
    reason = missing = ""
    facts: dict[str, Any] = {}
    try:
        pixels, facts = reference(content)
        expected = to_rgb(pixels, facts)
    except Exception as error:
        missing = " ".join(str(error).split())[:70] or type(error).__name__
    wide = expected is not None and pixels.dtype != np.uint8 and "range" not in facts
    try:
        actual = np.asarray(load_image(content, value_range=type_range(pixels.dtype) if wide else ()))
    except Exception as error:
        reason = unreadable_reason(error)
    if actual is None:
        return {"outcome": "refused" if expected is not None else "refused by both", "detail": reason}
    if expected is None:
        return {"outcome": "no reference", "detail": missing}
    if actual.shape != expected.shape:
        return {"outcome": "different", "detail": f"size {actual.shape[:2]} here, {expected.shape[:2]} there"}
    difference = np.abs(actual.astype(int) - expected)
    agrees = np.percentile(difference, PERCENT) <= LEVELS
    detail = "" if agrees else f"{(difference > LEVELS).mean():.1%} of samples, up to {difference.max()} levels"
    return {"outcome": "equal" if agrees else "different", "detail": detail}


class Worker:
    """A process that compares files one by one, and is replaced when it dies."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def compare(self, path: Path) -> dict[str, Any]:
        try:
            return self.pool.submit(compare, path).result(SECONDS)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in list(self.pool._processes.values()):
                process.kill()
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            return {"outcome": "crash", "detail": type(error).__name__}


def main(
    folder: Path,
    skip: Annotated[str, typer.Option(help="Extensions to skip, separated by commas.")] = "py,txt,md,rst,html,toml,c,h",
) -> None:
    """Print the number of files of each outcome, and every file that is not read equally by both."""
    skipped = tuple(f".{extension}" for extension in skip.split(","))
    outcomes: dict[str, list[str]] = defaultdict(list)
    worker = Worker()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size and not path.name.lower().endswith(skipped):
            result = worker.compare(path)
            outcomes[result["outcome"]].append(f"{path.relative_to(folder)}: {result['detail']}")
    worker.pool.shutdown()
    for outcome in ("crash", "different", "refused", "no reference"):
        print(f"\n{outcome}: {len(outcomes[outcome])}")
        print("\n".join(f"  {line}" for line in outcomes[outcome]))
    print(f"\n{ ({outcome: len(lines) for outcome, lines in outcomes.items()}) }")


if __name__ == "__main__":
    typer.run(main)
