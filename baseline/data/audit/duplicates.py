"""Find duplicates: exact copies by file hash, near-duplicates by perceptual hash and the correlation of thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.split import connected_components

if TYPE_CHECKING:
    from baseline.data.audit.scan import ScanResult

__all__ = ["near_pairs"]


MAX_BITS = 10
"""Maximum number of bits in which the hashes of near-duplicates differ."""


LARGE_TABLE, MAX_BITS_LARGE = 200_000, 3
"""Number of images above which fewer bits may differ, and how many: among more images, more pairs arise by chance."""


MAX_PAIRS = 5_000_000
"""Maximum number of near-duplicate pairs; above it the thumbnails have to correlate more strongly."""


MIN_CORRELATION = 0.9
"""Correlation that the thumbnails of near-duplicates exceed."""


MIN_CONTRAST = 4.0
"""Standard deviation of a thumbnail's values (0-255) below which an image is too plain to be compared by appearance."""


def near_pairs(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of 64-bit hashes that differ in at most `bits` bits, in blocks of (first, second, distance).

    By the pigeonhole principle (Manku et al., Detecting Near-Duplicates for Web Crawling, 2007), two such hashes agree
    in at least one of `bits + 1` pieces, so only hashes that share a piece are compared. Each pair is yielded once, for
    the first piece that it shares; memory is bounded by one block, whatever the number of hashes.

    >>> [int(bit) for _, _, distance in near_pairs(np.array([0, 1, 255], np.uint64), 2) for bit in distance]
    [1]
    """
    edges = np.linspace(0, 64, bits + 2).astype(np.uint64)
    masks = [((1 << int(high - low)) - 1) << int(low) for low, high in pairwise(edges)]
    for piece, mask in enumerate(masks):
        keys = hashes & np.uint64(mask)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] ^ np.uint64(mask)))
        for low, high in pairwise([*starts, len(order)]):
            if high - low > 1:
                yield from pairs_in_bucket(order[low:high], hashes, bits, masks[:piece])


def count_bits(values: np.ndarray) -> np.ndarray:
    """Return the number of bits that are set in each value, uint8.

    >>> count_bits(np.array([0, 5, 2**64 - 1], np.uint64)).tolist()
    [0, 2, 64]
    """
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    octets = np.ascontiguousarray(values)[..., None].view(np.uint8)  # NumPy 1.26
    return np.unpackbits(octets, axis=-1).sum(-1, dtype=np.uint8)


def pairs_in_bucket(
    members: np.ndarray, hashes: np.ndarray, bits: int, earlier: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the pairs among hashes that share a piece, except those that also share one of the earlier pieces."""
    values = hashes[members]
    block_rows = max(1, 2_000_000 // len(members))
    for start in range(0, len(members), block_rows):
        difference = values[start : start + block_rows, None] ^ values[None, :]
        distance = count_bits(difference)
        first, second = np.nonzero(distance <= bits)
        keep = second > first + start
        first, second = first[keep], second[keep]
        for mask in earlier:
            new = (difference[first, second] & np.uint64(mask)) != 0
            first, second = first[new], second[new]
        if len(first):
            yield members[first + start], members[second], distance[first, second]


def find_pairs(images: pd.DataFrame, scan: ScanResult) -> pd.DataFrame:
    """Return all pairs of duplicates, one per row: exact copies with the first image of their file, then look-alikes.

    Args:
        images: an image table with the columns of the scan.

    Returns:
        The table that `Audit.pairs` describes, ordered by the rows of the image table.
    """
    readable = np.flatnonzero(images["reason"].to_numpy() == "")
    _, first, inverse = np.unique(scan.digest[readable], return_index=True, return_inverse=True)
    original = readable[first[inverse]]
    copies, unique = readable[original != readable], readable[original == readable]
    exact = (original[original != readable], copies, np.zeros(len(copies), np.uint8))
    near = drop_chance_pairs(*similar_pairs(unique, scan), len(images))
    one, two, distance = (np.concatenate(arrays) for arrays in zip(exact, near, strict=True))
    one, two = np.minimum(one, two), np.maximum(one, two)
    order = np.lexsort((two, one))
    one, two, distance = one[order], two[order], distance[order]
    pairs = pd.DataFrame(
        {
            "path": images["path"].to_numpy()[one],
            "other": images["path"].to_numpy()[two],
            "kind": np.where(scan.digest[one] == scan.digest[two], "exact", "near"),
            "distance": distance.astype(int),
        }
    )
    for key in ("label", "split"):
        values = images[key].to_numpy(dtype=object)
        pairs[key], pairs[f"other_{key}"] = values[one], values[two]
    both_split = pairs["split"].notna() & pairs["other_split"].notna()
    pairs["leak"] = both_split & (pairs["split"] != pairs["other_split"])
    pairs["conflict"] = pairs["label"] != pairs["other_label"]
    return pairs


def similar_pairs(unique: np.ndarray, scan: ScanResult) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs that look alike: first, second, bits between hashes, and distance of thumbnails (0-1).

    Where there are more than MAX_PAIRS, as among images that all look alike, the required similarity is raised until
    they fit.
    """
    unique = unique[
        np.concatenate([thumbnail_contrast(subtract_channel_means(scan.thumb[part])) for part in row_blocks(unique)])
        >= MIN_CONTRAST
    ]
    hashes, max_distance, count = scan.hash[unique], 1 - MIN_CORRELATION, 0
    empty: list[np.ndarray] = [np.empty(0, dtype) for dtype in (np.int64, np.int64, np.uint8, np.float32)]
    parts: list[tuple[np.ndarray, ...]] = [tuple(empty)]
    for one, two, bits in near_pairs(hashes, MAX_BITS if len(unique) <= LARGE_TABLE else MAX_BITS_LARGE):
        one, two = unique[one], unique[two]
        distance = thumbnail_distance(scan.thumb, one, two)
        keep = distance < max_distance
        parts.append((one[keep], two[keep], bits[keep], distance[keep]))
        count += int(keep.sum())
        if count > MAX_PAIRS:
            max_distance /= 2
            parts = [tuple(values[part[3] < max_distance] for values in part) for part in parts]
            count = sum(len(part[0]) for part in parts)
    first, second, bits, distance = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return first, second, bits, distance


def thumbnail_distance(thumbs: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return one minus the correlation of each pair's thumbnails, centered by channel so that a color cast is ignored.

    Args:
        thumbs: N x 192, uint8.
        one, two: row numbers, one pair per element.
    """
    distances = []
    for rows, others in zip(row_blocks(one), row_blocks(two), strict=True):
        first, second = subtract_channel_means(thumbs[rows]), subtract_channel_means(thumbs[others])
        distances.append(
            1 - (first * second).mean(1) / np.maximum(thumbnail_contrast(first) * thumbnail_contrast(second), 1e-6)
        )
    return np.concatenate(distances)


def subtract_channel_means(thumbs: np.ndarray) -> np.ndarray:
    """Return the thumbnails as N x 192 floats with the mean of each channel subtracted."""
    channels = thumbs.reshape(-1, 64, 3).astype(np.float32)
    return (channels - channels.mean(1, keepdims=True)).reshape(-1, 192)


def thumbnail_contrast(centered: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each thumbnail, from its centered values."""
    return np.sqrt((centered**2).mean(1))


def row_blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Cut the rows into blocks of 32,768, which bounds memory; one empty block where there are no rows."""
    return [rows[start : start + 32_768] for start in range(0, max(1, len(rows)), 32_768)]


def drop_chance_pairs(
    one: np.ndarray, two: np.ndarray, bits: np.ndarray, distance: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop pairs that look alike only because very many images do: garments on white, digits, X-rays.

    Copies of one image all resemble each other, so they form a dense set; chance resemblances form chains, or take in a
    large part of all images. In a set in which fewer than half of all possible pairs are alike, or which holds more
    than a twentieth of all images (and more than twenty), a pair has to stand out: its distance must be at most a
    quarter of the distance between either image and its tenth most similar one.

    Args:
        one, two, bits, distance: from `similar_pairs`.
        count: number of images in the table.
    """
    if not len(one):
        return one, two, bits
    set_of = connected_components(one, two, count)
    images, pairs = np.bincount(set_of, minlength=count), np.bincount(set_of[one], minlength=count)
    dense = (pairs >= 0.25 * images * (images - 1)) & (images <= max(20, count // 20))
    ends = pd.DataFrame({"image": np.concatenate([one, two]), "distance": np.concatenate([distance] * 2)})
    ends = ends.sort_values(["image", "distance"], ignore_index=True)
    tenth = ends[ends.groupby("image").cumcount() == 9]
    tenth_distance = np.full(count, 1 - MIN_CORRELATION)
    tenth_distance[tenth["image"]] = tenth["distance"]
    limit = np.minimum(tenth_distance[one], tenth_distance[two]) / 4
    keep = dense[set_of[one]] | (distance <= limit)
    return one[keep], two[keep], bits[keep]


def duplicate_ids(images: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """Return for each image the number of the set of duplicates that it belongs to; -1 for an image without any."""
    if pairs.empty:
        return np.full(len(images), -1)
    row_of = pd.Series(np.arange(len(images)), index=images["path"])
    one, two = row_of[pairs["path"]].to_numpy(), row_of[pairs["other"]].to_numpy()
    alone = np.ones(len(images), bool)
    alone[one] = alone[two] = False
    return np.where(alone, -1, connected_components(one, two, len(images)))
