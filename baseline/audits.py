"""Photo table -> findings about it: what cannot be read, what comes twice, what leaks. Knows files; knows no models.

Every photo is decoded once; what was seen of it is kept in the cache by path, size and time of change, so that a second
audit reads only what is new. Nothing is moved or deleted.

Two photos are the same where their files are; they are near-duplicates where their perceptual hashes (pHash, 64 bits,
by the package imagehash) differ in at most 10 bits and their 8 x 8 thumbnails correlate by more than 0.9. On CIFAR-10's
60,000 photos that finds 54 % of the test photos that a published list pairs with a training photo; 58 % of those found
are on the list, and three of four of the rest are true by eye (`benchmarks/audit_cifar10.py`). It finds no mirrored,
turned or much cropped copies, and small things on an empty ground may be taken for copies.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .datasets import home
from .errors import DataError, LeakError
from .photos import file_bytes, opened, upright, why_unreadable
from .progress import Show
from .sources import trained_on
from .splits import components
from .tables import each_label

__all__ = ["Audit", "audit", "leaking", "near_pairs", "readable"]

BITS = 10
"""Bits in which the hashes of near-duplicates may differ; fewer among very many photos, where pairs by chance grow."""

BITS_OF_MANY, MANY = 3, 200_000
MOST_PAIRS = 5_000_000
CORRELATION = 0.9
FLAT = 4.0
"""Standard deviation of a thumbnail, of 255, below which a picture is too plain to be compared by its look."""

SMALL, LONG, TINY, UNEVEN = 32, 3.0, 10, 5.0
"""Pixels; long side over short; photos of a class; largest class over smallest: from here on each is told."""


FACTS = ("reason", "bytes", "width", "height", "mode", "turned", "frames")
"""What is told of every photo."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    photos: pd.DataFrame
    """The photo table with what was seen: `width, height` (pixels), `mode` (PIL's), `turned` (by EXIF), `frames`,
    `reason` (why it cannot be read, else empty) and `twins` (a number that copies share, -1 where there are none)."""
    pairs: pd.DataFrame
    """One row a pair of copies: `path, other, kind` (`exact`, `near`), `distance` (bits), `label, other_label, split,
    other_split, leak, conflict`."""
    findings: pd.DataFrame
    """One row a finding: `finding, photos, words, effect, answer`."""

    @property
    def usable(self) -> pd.DataFrame:
        """The photo table without the photos that cannot be read, with the column `twins` that `split` looks at."""
        kept = self.photos[self.photos["reason"] == ""].reset_index(drop=True)
        return kept.drop(columns=list(FACTS))

    @property
    def unreadable(self) -> pd.DataFrame:
        """`path, label, reason` of the photos that cannot be read."""
        return _unreadable(self.photos)

    def telling_pairs(self) -> dict[str, pd.DataFrame]:
        """Pairs worth looking at, by what they are: `leaks`, `conflicts`, `near_duplicates`; none that is empty."""
        near = self.pairs[self.pairs["kind"] == "near"].sort_values("distance", kind="stable")
        parts = {"leaks": self.pairs[self.pairs["leak"]], "conflicts": self.pairs[self.pairs["conflict"]]}
        return {name: part for name, part in {**parts, "near_duplicates": near}.items() if len(part)}

    def refuse_leaks(self) -> None:
        """Raises LeakError where photos of one split have copies in another."""
        leaks = self.pairs[self.pairs["leak"]]
        if len(leaks):
            row = leaks.iloc[0]
            raise LeakError(
                f"{len(leaks)} pairs of copies lie on two sides of the splits, first {row.path} ({row.split}) and "
                f"{row.other} ({row.other_split}). Give --leaks drop or --split random, or mend the photos."
            )


def audit(table: pd.DataFrame, *, grouped: bool = False, show: Show | None = None) -> Audit:
    """Reads every photo of the table once and tells what is wrong with them; see the module for how.

    Args:
        table: a photo table. Leaks are copies between the splits that it gives.
        grouped: whether the splits to come heed the column `group`; if not, an unused one is a finding.

    Raises:
        DataError: if no photo can be read, or too few classes or photos are left to train on.

    >>> checked = audit(photo_table("photos/"))                                   # doctest: +SKIP
    >>> checked.findings                                                          # doctest: +SKIP
    """
    show = show or Show()
    table = table.reset_index(drop=True)
    seen = _seen(table["path"].tolist(), show)
    photos = table.assign(**seen.columns(), twins=-1)
    _refuse_hopeless(photos)
    pairs = _pairs(photos, seen)
    photos["twins"] = _twins(photos, pairs)
    found = pd.DataFrame(_findings(photos, pairs, grouped), columns=["finding", "photos", "words", "effect", "answer"])
    return Audit(photos, pairs, found)


def readable(table: pd.DataFrame, show: Show | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The photo table without the photos that cannot be read, and a table of those (`path`, `label`, `reason`).

    What is left of an audit where none is wanted: every photo is read once, but not compared with the others.

    Raises:
        DataError: if no photo can be read, or too few classes or photos are left to train on.
    """
    show = show or Show()
    table = table.reset_index(drop=True)
    photos = table.assign(reason=_seen(table["path"].tolist(), show).reason)
    _refuse_hopeless(photos)
    return table[photos["reason"] == ""].reset_index(drop=True), _unreadable(photos)


def _unreadable(photos: pd.DataFrame) -> pd.DataFrame:
    return photos.loc[photos["reason"] != "", ["path", "label", "reason"]].reset_index(drop=True)


def leaking(table: pd.DataFrame) -> pd.Series:
    """Which photos of a table with splits and `twins` have a copy in a later one: training in valid, both in test."""
    rank = table["split"].map({"train": 0, "valid": 1, "test": 2})
    return (table["twins"] >= 0) & (rank < rank.groupby(table["twins"]).transform("max"))


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
                yield from _within(order[low:high], hashes, bits, masks[:piece])


def _within(
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


# ---- looking at every photo -----------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """Of every photo, in order."""

    reason: np.ndarray
    bytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mode: np.ndarray
    turned: np.ndarray
    frames: np.ndarray
    digest: np.ndarray
    """A hash of the file."""
    hash: np.ndarray
    """The perceptual hash."""
    thumb: np.ndarray
    """N x 192, uint8: 8 x 8 RGB."""

    @classmethod
    def of(cls, count: int) -> _Seen:
        text, whole = np.full(count, "", dtype=object), np.zeros(count, np.int32)
        flags, hashes = np.zeros(count, bool), np.zeros(count, np.uint64)
        return cls(
            text, np.zeros(count, np.int64), whole, whole.copy(), text.copy(), flags, whole.copy(), hashes,
            hashes.copy(), np.zeros((count, 192), np.uint8),
        )  # fmt: skip

    def put(self, row: int, facts: tuple) -> None:
        self.reason[row], self.bytes[row], self.width[row], self.height[row], self.mode[row] = facts[:5]
        self.turned[row], self.frames[row] = facts[5:7]
        if not facts[0]:
            self.digest[row] = np.frombuffer(facts[7], np.uint64)[0]
            self.hash[row] = np.frombuffer(facts[8], np.uint64)[0]
            self.thumb[row] = np.frombuffer(facts[9], np.uint8)

    def columns(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in FACTS}


def _seen(paths: Sequence[str], show: Show) -> _Seen:
    seen = _Seen.of(len(paths))
    with closing(_Memory(show)) as memory, show.bar("looking at every photo", len(paths), "photos") as bar:
        unknown = []
        for row, path in enumerate(paths):
            stamp = _stamp(path)
            if facts := memory.recall(path, stamp):
                seen.put(row, facts)
                bar.step()
            else:
                unknown.append((row, path, stamp))
        parts = [unknown[at : at + 64] for at in range(0, len(unknown), 64)]  # one by one, handing over costs too much
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for at in range(0, len(parts), 64):
                for part, looks in zip(parts[at : at + 64], pool.map(_look_all, parts[at : at + 64]), strict=True):
                    for (row, path, stamp), facts in zip(part, looks, strict=True):
                        seen.put(row, facts)
                        memory.keep(path, stamp, facts)
                    bar.step(len(part))
                memory.save()
    return seen


def _look_all(part: list[tuple[int, str, tuple[int, int]]]) -> list[tuple]:
    return [_look(path) for _, path, _ in part]


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def _look(path: str) -> tuple:
    """Reason, bytes, width, height, mode, turned, frames; then digest, hash and thumbnail of what can be read."""
    import imagehash
    from PIL import Image

    try:
        content = file_bytes(path)
    except OSError as error:
        return _unseen(why_unreadable(error))
    size = len(content)
    try:
        image = opened(content)
        width, height = image.size
        mode = image.mode
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        frames = getattr(image, "n_frames", 1)
        image.draft("RGB", (64, 64))  # a JPEG is still read to its end, so that a truncated one is found
        small = upright(image)
        if min(small.size) > 128:
            small = small.resize((64, 64), Image.Resampling.BOX)
        thumb = small.resize((8, 8), Image.Resampling.BOX).tobytes()
        look = np.packbits(imagehash.phash(small).hash.reshape(-1)).tobytes()
    except Exception as error:
        return _unseen(why_unreadable(error), size)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return ("", size, width, height, mode, turned, frames, digest, look, thumb)


def _unseen(reason: str, size: int = 0) -> tuple:
    return (reason, size, 0, 0, "", False, 0, b"", b"", b"")


class _Memory:
    """What was seen of photos before, in the cache, each row with its checksum; what is damaged is seen anew."""

    VERSION = 2
    COLUMNS = ", ".join((*FACTS, "digest", "hash", "thumb", "crc"))

    def __init__(self, show: Show) -> None:
        self.base: sqlite3.Connection | None = None
        self.show = show
        self.file = home() / f"audit-{self.VERSION}.sqlite"
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _open(self) -> None:
        home().mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.file, timeout=30)
        columns = f"path TEXT PRIMARY KEY, size INTEGER, time INTEGER, {self.COLUMNS}"
        self.base.execute(f"CREATE TABLE IF NOT EXISTS photos ({columns}) WITHOUT ROWID")

    def _give_up(self, error: Exception) -> None:
        """Goes on without the cache; one that is damaged is removed and begun again."""
        base, self.base = self.base, None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if base is not None and code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            base.close()
            try:
                self.file.unlink()
                self._open()
            except (OSError, sqlite3.Error) as again:
                error, self.base = again, None
            else:
                self.show.say(f"cache: {self.file} is damaged ({error}); photos are looked at again")
                return
        self.show.say(f"what is seen of the photos is not kept for the next time: {home()}: {error}")

    def recall(self, path: str, stamp: tuple[int, int]) -> tuple | None:
        if self.base is None:
            return None
        try:
            found = self.base.execute(
                f"SELECT {self.COLUMNS} FROM photos WHERE path = ? AND size = ? AND time = ?",
                (_text(path), *stamp),
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return found[:-1] if found and found[-1] == _checksum(path, stamp, found[:-1]) else None

    def keep(self, path: str, stamp: tuple[int, int], facts: tuple) -> None:
        if self.base is None or stamp[0] < 0:
            return
        try:
            row = (_text(path), *stamp, *facts, _checksum(path, stamp, facts))
            self.base.execute(f"INSERT OR REPLACE INTO photos VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.Error as error:
            self._give_up(error)

    def save(self) -> None:
        if self.base is not None:
            try:
                self.base.commit()
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        self.save()
        if self.base is not None:
            self.base.close()


def _checksum(path: str, stamp: tuple[int, int], facts: tuple) -> int:
    told = (_text(path), *stamp, *(int(each) if isinstance(each, bool) else each for each in facts))
    return zlib.crc32(repr(told).encode())


def _text(path: str) -> str | bytes:
    """Names that are no valid text, which SQLite refuses, as their bytes."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return os.fsencode(path)


# ---- what follows from it -------------------------------------------------------------------------------------------


def _refuse_hopeless(photos: pd.DataFrame) -> None:
    bad = photos[photos["reason"] != ""]
    if len(bad) == len(photos):
        first = bad.iloc[0]
        raise DataError(f"None of the {len(bad)} photos can be read; the first: {first['path']} ({first['reason']}).")
    if len(bad):
        trained_on(photos[photos["reason"] == ""])


def _pairs(photos: pd.DataFrame, seen: _Seen) -> pd.DataFrame:
    """Every copy beside the first photo of its file, and every pair that looks the same."""
    whole = np.flatnonzero(photos["reason"].to_numpy() == "")
    _, first, which = np.unique(seen.digest[whole], return_index=True, return_inverse=True)
    leader = whole[first[which]]
    copies, unique = whole[leader != whole], whole[leader == whole]
    near = _standing_out(*_alike(unique, seen), len(photos))
    one, two, distance = (
        np.concatenate(each)
        for each in zip((leader[leader != whole], copies, np.zeros(len(copies), np.uint8)), near, strict=True)
    )
    one, two = np.minimum(one, two), np.maximum(one, two)
    order = np.lexsort((two, one))
    one, two, distance = one[order], two[order], distance[order]
    pairs = pd.DataFrame(
        {
            "path": photos["path"].to_numpy()[one],
            "other": photos["path"].to_numpy()[two],
            "kind": np.where(seen.digest[one] == seen.digest[two], "exact", "near"),
            "distance": distance.astype(int),
        }
    )
    for key in ("label", "split"):
        values = photos[key].to_numpy(dtype=object)
        pairs[key], pairs[f"other_{key}"] = values[one], values[two]
    given = pairs["split"].notna() & pairs["other_split"].notna()
    pairs["leak"] = given & (pairs["split"] != pairs["other_split"])
    pairs["conflict"] = pairs["label"] != pairs["other_label"]
    return pairs


def _alike(unique: np.ndarray, seen: _Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of these photos that look alike: first, second, bits between hashes, and difference of thumbnails, 0-1.

    Where there are more than MOST_PAIRS, as with photos that are all alike, ever stricter ones are kept.
    """
    unique = unique[np.concatenate([_spread(_centred(seen.thumb[part])) for part in _blocks(unique)]) >= FLAT]
    hashes, most, held = seen.hash[unique], 1 - CORRELATION, 0
    none: list[np.ndarray] = [np.empty(0, kind) for kind in (np.int64, np.int64, np.uint8, np.float32)]
    parts: list[tuple[np.ndarray, ...]] = [tuple(none)]
    for one, two, bits in near_pairs(hashes, BITS if len(unique) <= MANY else BITS_OF_MANY):
        one, two = unique[one], unique[two]
        difference = _difference(seen.thumb, one, two)
        keep = difference < most
        parts.append((one[keep], two[keep], bits[keep], difference[keep]))
        held += int(keep.sum())
        if held > MOST_PAIRS:
            most /= 2
            parts = [tuple(each[part[3] < most] for each in part) for part in parts]
            held = sum(len(part[0]) for part in parts)
    first, second, bits, difference = (np.concatenate(each) for each in zip(*parts, strict=True))
    return first, second, bits, difference


def _difference(thumbs: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """One minus the correlation of each pair's thumbnails, channel by channel, so that a colour cast does not count."""
    found = []
    for rows, others in zip(_blocks(one), _blocks(two), strict=True):
        first, second = _centred(thumbs[rows]), _centred(thumbs[others])
        found.append(1 - (first * second).mean(1) / np.maximum(_spread(first) * _spread(second), 1e-6))
    return np.concatenate(found)


def _centred(thumbs: np.ndarray) -> np.ndarray:
    """N x 192 floats, the mean of each channel taken off."""
    channels = thumbs.reshape(-1, 64, 3).astype(np.float32)
    return (channels - channels.mean(1, keepdims=True)).reshape(-1, 192)


def _spread(centred: np.ndarray) -> np.ndarray:
    return np.sqrt((centred**2).mean(1))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """A few ten thousand at a time, which bounds memory; one empty block where there are none."""
    return [rows[at : at + 32_768] for at in range(0, max(1, len(rows)), 32_768)]


def _standing_out(
    one: np.ndarray, two: np.ndarray, bits: np.ndarray, difference: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Without pairs that look alike only because very many do: garments on white, digits, X-rays.

    Copies of one photo all resemble each other, so their set is dense; likenesses by chance form chains, or take in a
    good part of all photos. In a set of which fewer than half of all possible pairs are alike, or which holds more
    than a twentieth of the photos (and than twenty), a pair has to stand out: its difference is at most a quarter of
    that between either photo and the tenth that looks most like it.
    """
    if not len(one):
        return one, two, bits
    set_of = components(one, two, count)
    photos, pairs = np.bincount(set_of, minlength=count), np.bincount(set_of[one], minlength=count)
    dense = (pairs >= 0.25 * photos * (photos - 1)) & (photos <= max(20, count // 20))
    ends = pd.DataFrame({"photo": np.concatenate([one, two]), "difference": np.concatenate([difference] * 2)})
    ends = ends.sort_values(["photo", "difference"], ignore_index=True)
    tenth = ends[ends.groupby("photo").cumcount() == 9]
    usual = np.full(count, 1 - CORRELATION)
    usual[tenth["photo"]] = tenth["difference"]
    limit = np.minimum(usual[one], usual[two]) / 4
    keep = dense[set_of[one]] | (difference <= limit)
    return one[keep], two[keep], bits[keep]


def _twins(photos: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """A number for each set of photos that pairs hold together; -1 for a photo without copies."""
    if pairs.empty:
        return np.full(len(photos), -1)
    row = pd.Series(np.arange(len(photos)), index=photos["path"])
    one, two = row[pairs["path"]].to_numpy(), row[pairs["other"]].to_numpy()
    alone = np.ones(len(photos), bool)
    alone[one] = alone[two] = False
    return np.where(alone, -1, components(one, two, len(photos)))


def _findings(photos: pd.DataFrame, pairs: pd.DataFrame, grouped: bool) -> Iterator[tuple[str, int, str, str, str]]:
    """Worst first. Each says what it may do to the number, and the option that answers it."""
    whole = photos[photos["reason"] == ""]
    leaks = pairs[pairs["leak"]]
    if len(leaks):
        inside = pd.concat([leaks["path"][leaks["split"] == "test"], leaks["other"][leaks["other_split"] == "test"]])
        count = inside.nunique()
        test = max(1, int((whole["split"] == "test").sum()))
        words = f"{len(leaks):,} pairs of copies lie in two splits; {count:,} of test ({count / test:.1%})"
        yield "leak", count or len(leaks), words, "the number is too good", "--leaks drop, or --split random"
    conflicts = pairs[pairs["conflict"]]
    if len(conflicts):
        exact = conflicts[conflicts["kind"] == "exact"]
        words = f"{len(conflicts):,} pairs of copies have different labels; {len(exact):,} are identical files"
        equal = [f"{Path(one).name} = {Path(two).name}" for one, two in exact[["path", "other"]].head(3).to_numpy()]
        words += f": {', '.join(equal)}{' ...' if len(exact) > 3 else ''}" if equal else ""
        count = pd.concat([conflicts["path"], conflicts["other"]]).nunique()
        yield "conflict", count, words, "one label of two is wrong: a limit to every number", "mend the labels"
    if not grouped and whole["group"].notna().any():
        count = int(whole["group"].notna().sum())
        words = f"{whole['group'].nunique():,} groups are known, and the split does not heed them"
        yield "unused group", count, words, "the number is too good for groups never seen", "--split group"
    bad = photos[photos["reason"] != ""]
    if len(bad):
        listed = "; ".join(f"{Path(path).name} ({why})" for path, why in bad[["path", "reason"]].head(3).to_numpy())
        yield "unreadable", len(bad), f"{len(bad):,} cannot be read: {listed}", "they are left out", "mend them"
    for kind, words in (("exact", "copies of another file"), ("near", "near-duplicates of another")):
        found = pairs[pairs["kind"] == kind]
        if len(found):
            count = found["other"].nunique()
            effect = "they count more than once; splits made here keep them on one side"
            yield f"{kind} duplicates", count, f"{count:,} photos are {words}", effect, "none needed"
    yield from _class_findings(whole)
    yield from _look_findings(whole)


def _class_findings(whole: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    labels = whole[whole["split"].isna() | (whole["split"] == "train")]["label"]
    counts = each_label(labels).value_counts()
    if counts.iloc[0] >= UNEVEN * counts.iloc[-1]:
        words = f"'{counts.index[0]}' has {counts.iloc[0]:,} photos, '{counts.index[-1]}' {counts.iloc[-1]:,}"
        effect = f"always saying '{counts.index[0]}' scores {counts.iloc[0] / counts.sum():.1%}"
        yield "imbalance", int(counts.iloc[0]), words, effect, "--balance weights"
    tiny = counts[counts < TINY]
    if len(tiny):
        words = f"{len(tiny)} classes have fewer than {TINY} photos: {', '.join(map(str, tiny.index[:3]))}"
        yield "tiny classes", int(tiny.sum()), words, "what is said of these classes is chance", "add photos"


def _look_findings(whole: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    sides = whole[["width", "height"]]
    small = sides.min(axis=1) < SMALL
    if small.any():
        words = f"{int(small.sum()):,} are smaller than {SMALL} px, down to {int(sides.min(axis=1).min())} px"
        yield "small photos", int(small.sum()), words, "little is left to see", "a smaller --image-size saves time"
    long = sides.max(axis=1) > LONG * sides.min(axis=1)
    if long.any():
        words = f"{int(long.sum()):,} are more than {LONG:g} times as long as wide"
        yield "long photos", int(long.sum()), words, "squeezed into a square they are distorted", "--resize pad"
    modes = whole["mode"].value_counts()
    if len(modes) > 1:
        words = ", ".join(f"{mode} {count:,}" for mode, count in modes.items())
        effect = "a class that has a mode of its own is told by it; all become RGB"
        yield "modes", int(modes.iloc[1:].sum()), words, effect, "none needed"
    for finding, hits, words, effect in (
        (
            "EXIF-rotated",
            whole["turned"],
            "are turned by their EXIF orientation",
            "read upright here; other tools may see them lying",
        ),
        ("animations", whole["frames"] > 1, "are animations", "of each the first frame is taken"),
    ):
        if hits.any():
            yield finding, int(hits.sum()), f"{int(hits.sum()):,} ({hits.mean():.1%}) {words}", effect, "none needed"
