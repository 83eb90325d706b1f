"""TODO."""

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
"""Bits in which the hashes of near-duplicates may differ; fewer among very many images, where pairs by chance grow."""


MAX_BITS_LARGE, LARGE_TABLE = 3, 200_000

MAX_PAIRS = 5_000_000

MIN_CORRELATION = 0.9

MIN_CONTRAST = 4.0
"""Standard deviation of a thumbnail, of 255, below which a picture is too plain to be compared by its look."""


def near_pairs(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of 64-bit hashes that differ in at most `bits` bits, in blocks of (first, second, distance).

    By the pigeonhole principle (Manku et al., Detecting Near-Duplicates for Web Crawling, 2007): of `bits + 1` pieces
    of a hash at least one is the same in both, so only hashes that share a piece are compared. A pair is given once,
    for the first piece that it shares; memory stays below a block whatever the number of hashes.

    >>> [int(d) for _, _, found in near_pairs(np.array([0, 1, 255], np.uint64), 2) for d in found]
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


def pairs_in_bucket(
    members: np.ndarray, hashes: np.ndarray, bits: int, earlier: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    values = hashes[members]
    rows = max(1, 2_000_000 // len(members))
    for at in range(0, len(members), rows):
        differ = values[at : at + rows, None] ^ values[None, :]
        distance = np.bitwise_count(differ)
        first, second = np.nonzero(distance <= bits)
        keep = second > first + at
        first, second = first[keep], second[keep]
        for mask in earlier:
            new = (differ[first, second] & np.uint64(mask)) != 0
            first, second = first[new], second[new]
        if len(first):
            yield members[first + at], members[second], distance[first, second]


def find_pairs(images: pd.DataFrame, seen: ScanResult) -> pd.DataFrame:
    """Every copy beside the first image of its file, and every pair that looks the same."""
    whole = np.flatnonzero(images["reason"].to_numpy() == "")
    _, first, which = np.unique(seen.digest[whole], return_index=True, return_inverse=True)
    leader = whole[first[which]]
    copies, unique = whole[leader != whole], whole[leader == whole]
    near = drop_chance_pairs(*similar_pairs(unique, seen), len(images))
    one, two, distance = (
        np.concatenate(each)
        for each in zip((leader[leader != whole], copies, np.zeros(len(copies), np.uint8)), near, strict=True)
    )
    one, two = np.minimum(one, two), np.maximum(one, two)
    order = np.lexsort((two, one))
    one, two, distance = one[order], two[order], distance[order]
    pairs = pd.DataFrame(
        {
            "path": images["path"].to_numpy()[one],
            "other": images["path"].to_numpy()[two],
            "kind": np.where(seen.digest[one] == seen.digest[two], "exact", "near"),
            "distance": distance.astype(int),
        }
    )
    for key in ("label", "split"):
        values = images[key].to_numpy(dtype=object)
        pairs[key], pairs[f"other_{key}"] = values[one], values[two]
    given = pairs["split"].notna() & pairs["other_split"].notna()
    pairs["leak"] = given & (pairs["split"] != pairs["other_split"])
    pairs["conflict"] = pairs["label"] != pairs["other_label"]
    return pairs


def similar_pairs(unique: np.ndarray, seen: ScanResult) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of these images that look alike: first, second, bits between hashes, and difference of thumbnails, 0-1.

    Where there are more than MOST_PAIRS, as with images that are all alike, ever stricter ones are kept.
    """
    unique = unique[
        np.concatenate([thumbnail_contrast(subtract_channel_means(seen.thumb[part])) for part in row_blocks(unique)])
        >= MIN_CONTRAST
    ]
    hashes, most, held = seen.hash[unique], 1 - MIN_CORRELATION, 0
    none: list[np.ndarray] = [np.empty(0, kind) for kind in (np.int64, np.int64, np.uint8, np.float32)]
    parts: list[tuple[np.ndarray, ...]] = [tuple(none)]
    for one, two, bits in near_pairs(hashes, MAX_BITS if len(unique) <= LARGE_TABLE else MAX_BITS_LARGE):
        one, two = unique[one], unique[two]
        difference = thumbnail_distance(seen.thumb, one, two)
        keep = difference < most
        parts.append((one[keep], two[keep], bits[keep], difference[keep]))
        held += int(keep.sum())
        if held > MAX_PAIRS:
            most /= 2
            parts = [tuple(each[part[3] < most] for each in part) for part in parts]
            held = sum(len(part[0]) for part in parts)
    first, second, bits, difference = (np.concatenate(each) for each in zip(*parts, strict=True))
    return first, second, bits, difference


def thumbnail_distance(thumbs: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """One minus the correlation of each pair's thumbnails, channel by channel, so that a colour cast does not count."""
    found = []
    for rows, others in zip(row_blocks(one), row_blocks(two), strict=True):
        first, second = subtract_channel_means(thumbs[rows]), subtract_channel_means(thumbs[others])
        found.append(
            1 - (first * second).mean(1) / np.maximum(thumbnail_contrast(first) * thumbnail_contrast(second), 1e-6)
        )
    return np.concatenate(found)


def subtract_channel_means(thumbs: np.ndarray) -> np.ndarray:
    """N x 192 floats, the mean of each channel taken off."""
    channels = thumbs.reshape(-1, 64, 3).astype(np.float32)
    return (channels - channels.mean(1, keepdims=True)).reshape(-1, 192)


def thumbnail_contrast(centred: np.ndarray) -> np.ndarray:
    return np.sqrt((centred**2).mean(1))


def row_blocks(rows: np.ndarray) -> list[np.ndarray]:
    """A few ten thousand at a time, which bounds memory; one empty block where there are none."""
    return [rows[at : at + 32_768] for at in range(0, max(1, len(rows)), 32_768)]


def drop_chance_pairs(
    one: np.ndarray, two: np.ndarray, bits: np.ndarray, difference: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Without pairs that look alike only because very many do: garments on white, digits, X-rays.

    Copies of one image all resemble each other, so their set is dense; likenesses by chance form chains, or take in a
    good part of all images. In a set of which fewer than half of all possible pairs are alike, or which holds more
    than a twentieth of the images (and than twenty), a pair has to stand out: its difference is at most a quarter of
    that between either image and the tenth that looks most like it.
    """
    if not len(one):
        return one, two, bits
    set_of = connected_components(one, two, count)
    images, pairs = np.bincount(set_of, minlength=count), np.bincount(set_of[one], minlength=count)
    dense = (pairs >= 0.25 * images * (images - 1)) & (images <= max(20, count // 20))
    ends = pd.DataFrame({"image": np.concatenate([one, two]), "difference": np.concatenate([difference] * 2)})
    ends = ends.sort_values(["image", "difference"], ignore_index=True)
    tenth = ends[ends.groupby("image").cumcount() == 9]
    usual = np.full(count, 1 - MIN_CORRELATION)
    usual[tenth["image"]] = tenth["difference"]
    limit = np.minimum(usual[one], usual[two]) / 4
    keep = dense[set_of[one]] | (difference <= limit)
    return one[keep], two[keep], bits[keep]


def duplicate_ids(images: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """A number for each set of images that pairs hold together; -1 for an image without copies."""
    if pairs.empty:
        return np.full(len(images), -1)
    row = pd.Series(np.arange(len(images)), index=images["path"])
    one, two = row[pairs["path"]].to_numpy(), row[pairs["other"]].to_numpy()
    alone = np.ones(len(images), bool)
    alone[one] = alone[two] = False
    return np.where(alone, -1, connected_components(one, two, len(images)))
