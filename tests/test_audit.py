"""The audit finds what is wrong with images, says what it does and what to do, and leaves the files untouched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from commands import call
from conftest import REAL
from insects import draw
from PIL import Image, ImageEnhance

import baseline
from baseline import Progress, Recipe, audit, image_table, split
from baseline.data.audit import duplicates, scan
from baseline.data.audit.findings import collect_findings
from baseline.data.audit.readable import find_leaks
from baseline.errors import DataError, LeakError, RecipeError
from baseline.files import cache_home
from baseline.report.audit_files import write_audit


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """Twelve distinct images of two classes in train and test, to which each test adds its own problems."""
    folder = tmp_path / "rich"
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        for name in ("ants", "bees"):
            (folder / part / name).mkdir(parents=True)
            for number in numbers:
                draw_image(name, number).save(folder / part / name / f"{number}.png")
    return folder


def draw_image(name: str, number: int) -> Image.Image:
    """Draw a blurred pattern that is unique to the number: large shapes in many colors, as in photographs."""
    rng = np.random.default_rng(100 * (name == "bees") + number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return Image.blend(small.resize((128, 96), Image.Resampling.BICUBIC), draw(name, number).resize((128, 96)), 0.2)


def findings_by_name(folder: Path, **options: bool) -> dict[str, pd.Series]:
    findings = audit(image_table(folder), **options).findings
    return {row["finding"]: row for _, row in findings.iterrows()}


def test_clean_images_have_no_duplicates(rich: Path) -> None:
    assert set(findings_by_name(rich)) == {"tiny classes"}


def test_exact_copies_across_splits_are_a_leak_and_strict_rejects_them(rich: Path) -> None:
    shutil.copy(rich / "train/ants/0.png", rich / "test/ants/copy.png")
    checked = audit(image_table(rich))
    assert checked.pairs[["kind", "leak", "conflict"]].to_numpy().tolist() == [["exact", True, False]]
    leak = checked.findings.iloc[0]
    assert leak["words"] == "1 duplicate pair across splits, 1 byte-identical, affecting 1 test image (20.0%)"
    assert leak["effect"] == "the score is too optimistic"
    with pytest.raises(LeakError, match=r"first .*copy\.png \(test\)") as raised:
        checked.raise_on_leaks()
    assert raised.value.exit_code == 3
    parted = split(checked.usable, Recipe())
    dropped = parted[find_leaks(parted)]
    assert len(dropped) == 1 and dropped["path"].iloc[0].endswith("train/ants/0.png")


@pytest.mark.parametrize("change", ["jpeg", "brighter", "smaller", "shifted"])
def test_changed_copies_are_near_duplicates(rich: Path, change: str) -> None:
    image = draw_image("bees", 2)
    changed = {
        "jpeg": image,
        "brighter": ImageEnhance.Brightness(image).enhance(1.3),
        "smaller": image.resize((64, 48)),
        "shifted": image.crop((3, 2, 128, 96)),
    }[change]
    changed.save(rich / "train/ants/other.jpg", quality=60)
    checked = audit(image_table(rich))
    assert checked.pairs[["kind", "leak", "conflict"]].to_numpy().tolist() == [["near", False, True]]
    conflict = checked.findings.set_index("finding").loc["conflict"]
    assert conflict["effect"] == "either a label is wrong, or they only look alike"
    assert conflict["answer"] == "review the labels"


@pytest.mark.parametrize(("exact", "which"), [(1, "byte-identical pair"), (2, "pair")])
def test_only_byte_identical_pairs_with_different_labels_are_called_mislabeled(exact: int, which: str) -> None:
    images = pd.DataFrame({"path": list("abcd"), "label": ["ants", "bees"] * 2, "split": "test", "reason": ""})
    pairs = pd.DataFrame({
        "path": ["a", "c"], "other": ["b", "d"], "kind": ["exact", "exact" if exact == 2 else "near"],
        "split": "test", "other_split": "test", "leak": False, "conflict": True,
    })  # fmt: skip
    finding, _, _, effect, _ = next(collect_findings(images, pairs, False, ()))
    assert finding == "conflict"
    assert effect == f"at least one of each {which} is mislabeled, which caps any accuracy"


def test_a_leak_of_images_that_look_alike_may_be_none(rich: Path) -> None:
    draw_image("bees", 2).save(rich / "test/bees/other.jpg", quality=60)
    leak = findings_by_name(rich)["leak"]
    assert leak["words"].startswith("1 duplicate pair across splits, 0 byte-identical, affecting 1 test image")
    assert leak["effect"] == "the score is too optimistic, unless they only look alike"


@pytest.mark.parametrize("own", [12, 20, 30])
def test_images_that_are_all_alike_are_not_called_duplicates(own: int) -> None:
    """X-rays, digits, garments: a resemblance shared by all or many images is no duplicate; a duplicate stands out."""
    rng = np.random.default_rng(0)
    shared = blobs(rng.integers(0, 255, (6, 6)).astype(float))
    images = [shared + blobs(rng.normal(0, own, (6, 6))) for _ in range(400)]
    images.append(images[200] + rng.normal(0, 1, (48, 48)))
    result = scan.ScanResult.empty(len(images))
    for row, values in enumerate(images):
        result.set_record(row, scan_pil_image(Image.fromarray(values.clip(0, 255).astype(np.uint8)), row))
    candidates = duplicates.similar_pairs(np.arange(len(images)), result)
    first, second, _ = duplicates.drop_chance_pairs(*candidates, len(images))
    assert len(candidates[0]) > 100 and (200, 400) in set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(first) < 0.1 * len(images)


def blobs(values: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((48, 48), Image.Resampling.BICUBIC), float)


def scan_pil_image(image: Image.Image, row: int) -> tuple:
    path = Path(f"{row}.png")
    image.save(path)
    return scan.scan_image(str(path))


def test_all_pairs_of_near_hashes_are_found_exactly_once() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for row in range(0, 200, 2):  # neighbors of every distance up to 16
        flips = rng.choice(64, row % 17, replace=False)
        hashes[row + 1] = hashes[row] ^ np.bitwise_or.reduce(
            [np.uint64(1) << np.uint64(bit) for bit in flips] or [np.uint64(0)]
        )
    for bits in (0, 3, 10):
        pairs = [
            tuple(sorted(pair))
            for one, two, _ in duplicates.near_pairs(hashes, bits)
            for pair in zip(one.tolist(), two.tolist(), strict=True)
        ]
        distance = np.array([[(one ^ other).bit_count() for other in hashes.tolist()] for one in hashes.tolist()])
        expected = {(i, j) for i, j in zip(*np.nonzero(distance <= bits), strict=True) if i < j}
        assert len(pairs) == len(set(pairs)) and set(pairs) == expected


@pytest.mark.real_images
def test_every_problem_is_counted_and_a_run_still_completes(images: Path, body: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "hostile \n ü"
    shutil.copytree(images, folder)
    original = Image.open(folder / "ants/00.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    original.save(folder / "ants/turned.jpg", exif=turned)
    original.convert("CMYK").save(folder / "ants/cmyk.TIFF")
    original.convert("P").save(
        folder / "ants/with space.gif", save_all=True, append_images=[original.rotate(9).convert("P")]
    )
    original.convert("RGBA").save(folder / "bees/a\nb.png")
    Image.new("I;16", (40, 40), 900).save(folder / "bees/deep.png")
    Image.new("RGB", (1, 1)).save(folder / "bees/one.png")
    Image.new("RGB", (400, 20), "red").save(folder / "bees/long.png")
    (folder / "bees/text.jpg").write_text("no image")
    (folder / "bees/half.jpg").write_bytes((folder / "bees/00.jpg").read_bytes()[:900])
    shutil.copy(folder / "bees/01.jpg", folder / "ants/torn.jpg")
    before = sorted((str(f), f.stat().st_mtime_ns) for f in folder.rglob("*"))
    recipe = Recipe().changed(image_size=32, stages=(baseline.Stage("head", 2, 1e-2, augment=False),), **body)
    done = baseline.make_baseline(folder, recipe, out=tmp_path / "run", progress=Progress())
    assert {"conflict", "unreadable", "exact duplicates", "near duplicates", "small images", "long images", "modes",
            "EXIF-rotated", "animations"} <= set(audit(image_table(folder)).findings["finding"])  # fmt: skip
    assert done.manifest["data"]["left_out"] and len(done.manifest["data"]["left_out"]) == 2
    assert (tmp_path / "run/audit/findings.json").exists() and (tmp_path / "run/audit/conflicts.png").exists()
    assert before == sorted((str(f), f.stat().st_mtime_ns) for f in folder.rglob("*"))


def test_the_picture_of_pairs_shows_both_images_of_each(rich: Path, tmp_path: Path) -> None:
    for number in range(4):
        shutil.copy(rich / f"train/ants/{number}.png", rich / f"test/bees/copy-{number}.png")
    checked = audit(image_table(rich))
    (rich / "test/bees/copy-3.png").unlink()
    files = write_audit(tmp_path / "audit", checked)
    picture = Image.open(next(file for file in files if file.name == "leaks.png"))
    assert picture.width == 6 * 170 + 10, "three pairs in a row"
    for number, row in enumerate(checked.pairs.to_dict("records")):
        left, top = 10 + 340 * (number % 3), 34 + 200 * (number // 3)
        for path, at in ((row["path"], left), (row["other"], left + 170)):
            tile = np.asarray(picture.crop((at, top, at + 160, top + 160)).convert("RGB"), dtype=float)
            if not Path(path).exists():
                assert (tile == 211).all(), "gray"
                continue
            shown = np.asarray(Image.open(path).convert("RGB").resize((160, 120)), dtype=float)
            assert np.abs(tile[20:140] - shown).mean() < 12
    assert sum(not Path(path).exists() for path in checked.pairs[["path", "other"]].to_numpy().ravel()) == 1


def test_a_second_audit_reads_only_new_images(rich: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(image_table(rich))
    read = []
    look = scan.scan_image
    monkeypatch.setattr(scan, "scan_image", lambda path: read.append(path) or look(path))
    draw_image("ants", 9).save(rich / "train/ants/1.png")
    again = audit(image_table(rich))
    assert [Path(path).name for path in read] == ["1.png"] and len(again.images) == len(first.images)


def test_an_unusable_cache_is_reported_and_the_audit_continues_without_it(rich: Path) -> None:
    (cache_home() / "audit-3.sqlite").mkdir(parents=True)
    lines = []
    progress = type("RecordingProgress", (Progress,), {"log": lambda self, line: lines.append(line)})()
    assert len(audit(image_table(rich), progress=progress).images) == 12
    assert any("cannot be cached in" in line for line in lines)
    assert (cache_home() / "audit-3.sqlite").is_dir()


def test_an_unused_group_column_is_a_finding(rich: Path) -> None:
    table = image_table(rich).assign(group=list("aabbccddeeff"))
    assert "unused group" in set(audit(table).findings["finding"])
    assert "unused group" not in set(audit(table, grouped=True).findings["finding"])


def test_duplicates_get_the_same_split(tmp_path: Path) -> None:
    for number in range(12):
        for name in ("ants", "bees"):
            (tmp_path / name).mkdir(exist_ok=True)
            for copy in range(3):
                draw_image(name, number).save(tmp_path / name / f"{number}-{copy}.png", compress_level=copy)
    table = split(audit(image_table(tmp_path)).usable, Recipe().changed(valid_fraction=0.2))
    assert table["duplicate_id"].nunique() == 24 and table.groupby("duplicate_id")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "valid", "test"}


@pytest.mark.real_images
def test_the_three_known_conflicts_of_trashnet_are_found() -> None:
    if not (REAL / "trashnet_256").is_dir():
        pytest.skip("the real images are not available")
    conflicts = audit(image_table(REAL / "trashnet_256")).pairs.query("conflict and kind == 'exact'")
    names = [(Path(one).name, Path(two).name) for one, two in conflicts[["path", "other"]].to_numpy()]
    assert names == [
        ("glass115.jpg", "metal91.jpg"),
        ("glass176.jpg", "plastic152.jpg"),
        ("glass389.jpg", "plastic332.jpg"),
    ]


def test_a_table_without_readable_images_is_rejected(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("nothing")
    with pytest.raises(DataError, match="None of the 4 images can be read"):
        audit(image_table(tmp_path))


@pytest.mark.usefixtures("no_page")
def test_leaks_are_those_of_the_split_in_use(rich: Path, body: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(rich / "train/ants/0.png", rich / "test/ants/copy.png")
    stages = (baseline.Stage("head", 1, 1e-2, augment=False),)
    recipe = Recipe().changed(image_size=32, stages=stages, audit="strict", **body)
    with pytest.raises(LeakError, match="Found 1 image with a duplicate in a later split"):
        baseline.make_baseline(rich, recipe, out=tmp_path / "one", progress=Progress())
    assert not (tmp_path / "one").exists()
    again = recipe.changed(split="random")
    assert baseline.make_baseline(rich, again, out=tmp_path / "two", progress=Progress()).metrics
    dropped = baseline.make_baseline(rich, recipe.changed(leaks="drop"), out=tmp_path / "three", progress=Progress())
    assert sum(dropped.manifest["data"]["images"].values()) == 12
    with pytest.raises(RecipeError, match="needs the audit that is left out"):
        recipe.changed(leaks="drop", audit="none")


def test_pipes_and_markup_in_names_are_harmless(rich: Path) -> None:
    os.mkfifo(rich / "train/ants/pipe.jpg")
    (rich / "train/ants/[red]x.jpg").write_text("no image")
    ended = call("audit", rich, "-q")
    assert ended.returncode == 0 and "[red]x.jpg" in ended.stdout and "not a file" in ended.stdout


@pytest.mark.real_images
def test_perceptual_hashes_are_those_of_imagehash(images: Path) -> None:
    drawn = [Image.open(path).convert("RGB") for path in sorted(images.rglob("*.jpg"))]
    row, column = np.indices((64, 64)).astype(np.uint8)
    flat = [np.full((50, 40), 77, np.uint8), row, column, row + column, (row > 31) * np.uint8(255), row % 2 * column]
    noise = np.random.default_rng(0).integers(0, 256, (20, 70, 90), dtype=np.uint8)
    for image in [*drawn, *map(Image.fromarray, [*flat, *noise])]:
        assert (scan.perceptual_bits(image) == imagehash.phash(image).hash.reshape(-1)).all()
