"""Files that few programs write: TIFF with packed bits, PNG with further chunks, and color profiles."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def packed_tiff(values: np.ndarray, bits: int) -> bytes:
    """A gray TIFF whose samples take `bits` bits each, without gaps but at the end of a row."""
    height, width = values.shape
    of_samples = (values[..., None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1
    data = np.packbits(of_samples.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 134), (277, 1), (278, height),
            (279, len(data)), (339, 1)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG file with a chunk after its header."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


TO_PCS = np.array([[1.0478112, 0.0228866, -0.0501270], [0.0295424, 0.9904844, -0.0170491],
                   [-0.0092345, 0.0150436, 0.7521316]])  # fmt: skip
"""XYZ of D65 to that of D50 (Bradford)."""


def rgb_to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
    """The matrix from linear RGB to XYZ (D65) for the chromaticities of red, green and blue."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
SRGB = [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)]


def profile(space: bytes, name: str, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(1 + 78),
            b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz(0.9642, 1, 0.8249), **tags}  # fmt: skip
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        head += struct.pack(">4sII", tag, offset + len(body), len(data))
        body += data
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02400000, kind, space, pcs, bytes(12), b"acsp")
    header += bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + head + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma_profile(primaries: list[tuple[float, float]], gamma: float, name: str) -> bytes:
    """A profile of RGB with a gamma curve."""
    matrix = TO_PCS @ rgb_to_xyz(primaries)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {f"{c}XYZ".encode(): xyz(*matrix[:, k]) for k, c in enumerate("rgb")}
    return profile(b"RGB ", name, tags | {f"{c}TRC".encode(): curve for c in "rgb"})


def to_srgb(pixels: np.ndarray, primaries: list[tuple[float, float]], gamma: float) -> np.ndarray:
    """Colors of 8 bits in sRGB, by the formulas of the standard (IEC 61966-2-1)."""
    linear = (pixels / 255) ** gamma @ rgb_to_xyz(primaries).T @ np.linalg.inv(rgb_to_xyz(SRGB)).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def cmyk_profile() -> bytes:
    """A profile of CMYK inks that are weaker than pure ones, as a table of its 16 corners in Lab."""
    corners = np.array([[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)])
    light = (
        (1 - 0.45 * corners[:, 0]) * (1 - 0.4 * corners[:, 1]) * (1 - 0.1 * corners[:, 2]) * (1 - 0.9 * corners[:, 3])
    )
    a = (60 * corners[:, 1] - 35 * corners[:, 0]) * (1 - corners[:, 3])
    b = (80 * corners[:, 2] - 45 * corners[:, 0]) * (1 - corners[:, 3])
    lab = np.stack([255 * light, a + 128, b + 128], 1).round().astype(np.uint8)
    identity = np.arange(256, dtype=np.uint8).tobytes()
    unit = struct.pack(">9i", *(65536 if k % 4 == 0 else 0 for k in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + 4 * identity + lab.tobytes() + 3 * identity
    return profile(b"CMYK", "Weak inks", {b"A2B0": table}, b"Lab ")
