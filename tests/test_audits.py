"""What is wrong with photos is found, told with what it does and what answers it, and nothing on disk is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call
from conftest import REAL
from insects import draw
from PIL import Image, ImageEnhance

import baseline
from baseline import DataError, LeakError, Recipe, Show, audit, audits, photo_table, split
from baseline.datasets import home


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """Twelve pictures of two classes in train and test that differ, with room for trouble."""
    folder = tmp_path / "rich"
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        for name in ("ants", "bees"):
            (folder / part / name).mkdir(parents=True)
            for number in numbers:
                picture(name, number).save(folder / part / name / f"{number}.png")
    return folder


def picture(name: str, number: int) -> Image.Image:
    """A blurred pattern of its own, as photos have: large shapes in many colours."""
    rng = np.random.default_rng(100 * (name == "bees") + number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return Image.blend(small.resize((128, 96), Image.Resampling.BICUBIC), draw(name, number).resize((128, 96)), 0.2)


def found(folder: Path, **options: bool) -> dict[str, pd.Series]:
    findings = audit(photo_table(folder), **options).findings
    return {row["finding"]: row for _, row in findings.iterrows()}


def test_clean_photos_have_no_copies(rich: Path) -> None:
    assert set(found(rich)) == {"tiny classes"}


def test_exact_copies_across_splits_are_a_leak_and_strict_refuses_them(rich: Path) -> None:
    shutil.copy(rich / "train/ants/0.png", rich / "test/ants/copy.png")
    checked = audit(photo_table(rich))
    assert checked.pairs[["kind", "leak", "conflict"]].to_numpy().tolist() == [["exact", True, False]]
    assert "1 pairs of copies lie in two splits; 1 of test (20.0%)" in checked.findings["words"][0]
    with pytest.raises(LeakError, match=r"first .*copy\.png \(test\)") as refused:
        checked.refuse_leaks()
    assert refused.value.exit_code == 3
    parted = split(checked.usable, Recipe())
    dropped = parted[audits.leaking(parted)]
    assert len(dropped) == 1 and dropped["path"].iloc[0].endswith("train/ants/0.png")


@pytest.mark.parametrize("change", ["jpeg", "brighter", "smaller", "shifted"])
def test_changed_copies_are_near_duplicates(rich: Path, change: str) -> None:
    image = picture("bees", 2)
    changed = {
        "jpeg": image,
        "brighter": ImageEnhance.Brightness(image).enhance(1.3),
        "smaller": image.resize((64, 48)),
        "shifted": image.crop((3, 2, 128, 96)),
    }[change]
    changed.save(rich / "train/ants/other.jpg", quality=60)
    checked = audit(photo_table(rich))
    assert checked.pairs[["kind", "leak", "conflict"]].to_numpy().tolist() == [["near", False, True]]
    assert "conflict" in checked.findings["finding"].tolist()


@pytest.mark.parametrize("own", [12, 20, 30])
def test_photos_that_are_all_alike_are_not_called_copies(own: int) -> None:
    """X-rays, digits, garments: likeness that all share is no copy, whether it joins all or some; a copy stands out."""
    rng = np.random.default_rng(0)
    shared = blobs(rng.integers(0, 255, (6, 6)).astype(float))
    images = [shared + blobs(rng.normal(0, own, (6, 6))) for _ in range(400)]
    images.append(images[200] + rng.normal(0, 1, (48, 48)))
    seen = audits._Seen.of(len(images))
    for row, values in enumerate(images):
        seen.put(row, look(Image.fromarray(values.clip(0, 255).astype(np.uint8)), row))
    alike = audits._alike(np.arange(len(images)), seen)
    first, second, _ = audits._standing_out(*alike, len(images))
    assert len(alike[0]) > 100 and (200, 400) in set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(first) < 0.1 * len(images)


def blobs(values: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((48, 48), Image.Resampling.BICUBIC), float)


def look(image: Image.Image, row: int) -> tuple:
    path = Path(f"{row}.png")
    image.save(path)
    return audits._look(str(path))


def test_all_pairs_of_near_hashes_are_found_once() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for row in range(0, 200, 2):  # neighbours of every distance up to 16
        flips = rng.choice(64, row % 17, replace=False)
        hashes[row + 1] = hashes[row] ^ np.bitwise_or.reduce(
            [np.uint64(1) << np.uint64(bit) for bit in flips] or [np.uint64(0)]
        )
    for bits in (0, 3, 10):
        given = [
            tuple(sorted(pair))
            for one, two, _ in audits.near_pairs(hashes, bits)
            for pair in zip(one.tolist(), two.tolist(), strict=True)
        ]
        distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
        wanted = {(i, j) for i, j in zip(*np.nonzero(distance <= bits), strict=True) if i < j}
        assert len(given) == len(set(given)) and set(given) == wanted


def test_every_oddity_is_counted_and_a_run_still_ends_with_a_number(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile \n ü"
    shutil.copytree(photos, folder)
    whole = Image.open(folder / "ants/00.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    whole.save(folder / "ants/turned.jpg", exif=turned)
    whole.convert("CMYK").save(folder / "ants/cmyk.TIFF")
    whole.convert("P").save(folder / "ants/with space.gif", save_all=True, append_images=[whole.rotate(9).convert("P")])
    whole.convert("RGBA").save(folder / "bees/a\nb.png")
    Image.new("I;16", (40, 40), 900).save(folder / "bees/deep.png")
    Image.new("RGB", (1, 1)).save(folder / "bees/one.png")
    Image.new("RGB", (400, 20), "red").save(folder / "bees/long.png")
    (folder / "bees/text.jpg").write_text("no photo")
    (folder / "bees/half.jpg").write_bytes((folder / "bees/00.jpg").read_bytes()[:900])
    shutil.copy(folder / "bees/01.jpg", folder / "ants/torn.jpg")
    before = sorted((str(f), f.stat().st_mtime_ns) for f in folder.rglob("*"))
    recipe = Recipe(image_size=32, stages=(baseline.Stage("head", 2, 1e-2),))
    done = baseline.make_baseline(folder, recipe, out=tmp_path / "run", show=Show())
    assert {"conflict", "unreadable", "exact duplicates", "near duplicates", "small photos", "long photos", "modes",
            "EXIF-rotated", "animations"} <= set(audit(photo_table(folder)).findings["finding"])  # fmt: skip
    assert done.manifest["data"]["left_out"] and len(done.manifest["data"]["left_out"]) == 2
    assert (tmp_path / "run/audit/findings.json").exists() and (tmp_path / "run/audit/conflicts.png").exists()
    assert before == sorted((str(f), f.stat().st_mtime_ns) for f in folder.rglob("*"))


def test_a_second_audit_reads_only_what_is_new(rich: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(photo_table(rich))
    read = []
    look = audits._look
    monkeypatch.setattr(audits, "_look", lambda path: read.append(path) or look(path))
    picture("ants", 9).save(rich / "train/ants/1.png")
    again = audit(photo_table(rich))
    assert [Path(path).name for path in read] == ["1.png"] and len(again.photos) == len(first.photos)


def test_a_cache_that_cannot_be_used_is_said_and_done_without(rich: Path) -> None:
    (home() / "audit-2.sqlite").mkdir(parents=True)
    said = []
    show = type("Listening", (Show,), {"say": lambda self, line: said.append(line)})()
    assert len(audit(photo_table(rich), show=show).photos) == 12
    assert any("is not kept for the next time" in line for line in said)
    assert (home() / "audit-2.sqlite").is_dir()


def test_a_group_that_is_not_used_is_told(rich: Path) -> None:
    table = photo_table(rich).assign(group=list("aabbccddeeff"))
    assert "unused group" in set(audit(table).findings["finding"])
    assert "unused group" not in set(audit(table, grouped=True).findings["finding"])


def test_copies_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    for number in range(12):
        for name in ("ants", "bees"):
            (tmp_path / name).mkdir(exist_ok=True)
            for copy in range(3):
                picture(name, number).save(tmp_path / name / f"{number}-{copy}.png", compress_level=copy)
    table = split(audit(photo_table(tmp_path)).usable, Recipe(valid_share=0.2))
    assert table["twins"].nunique() == 24 and table.groupby("twins")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "valid", "test"}


def test_the_three_known_conflicts_of_trashnet_are_named() -> None:
    if not (REAL / "trashnet_256").is_dir():
        pytest.skip("the real photos are not at hand")
    conflicts = audit(photo_table(REAL / "trashnet_256")).pairs.query("conflict and kind == 'exact'")
    names = [(Path(one).name, Path(two).name) for one, two in conflicts[["path", "other"]].to_numpy()]
    assert names == [
        ("glass115.jpg", "metal91.jpg"),
        ("glass176.jpg", "plastic152.jpg"),
        ("glass389.jpg", "plastic332.jpg"),
    ]


def test_no_readable_photo_is_refused(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("nothing")
    with pytest.raises(DataError, match="None of the 4 photos can be read"):
        audit(photo_table(tmp_path))


@pytest.mark.usefixtures("no_page")
def test_leaks_are_those_of_the_split_that_is_used(rich: Path, tmp_path: Path) -> None:
    shutil.copy(rich / "train/ants/0.png", rich / "test/ants/copy.png")
    recipe = Recipe(image_size=32, stages=(baseline.Stage("head", 1, 1e-2),), audit="strict")
    with pytest.raises(LeakError, match="1 photos have a copy in a later split"):
        baseline.make_baseline(rich, recipe, out=tmp_path / "one", show=Show())
    assert not (tmp_path / "one").exists()
    again = recipe.changed(split="random")
    assert baseline.make_baseline(rich, again, out=tmp_path / "two", show=Show()).metrics
    dropped = baseline.make_baseline(rich, recipe.changed(leaks="drop"), out=tmp_path / "three", show=Show())
    assert sum(dropped.manifest["data"]["photos"].values()) == 12
    with pytest.raises(baseline.RecipeError, match="needs the audit that is left out"):
        recipe.changed(leaks="drop", audit="none")


def test_a_pipe_and_markup_in_names_do_no_harm(rich: Path) -> None:
    os.mkfifo(rich / "train/ants/pipe.jpg")
    (rich / "train/ants/[red]x.jpg").write_text("no photo")
    ended = call("audit", rich, "-q")
    assert ended.returncode == 0 and "[red]x.jpg" in ended.stdout and "not a file" in ended.stdout
