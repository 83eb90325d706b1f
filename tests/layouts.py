"""Small imitations of the layouts in which public datasets come, each with what its user expects of it."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Layout:
    """A layout and what is expected of it: classes with their numbers of images, or an error."""

    write: Callable[[Path], None]
    classes: dict[str, int] | None = None
    """Images per class; an image with several labels counts for each."""
    splits: dict[str, int] = field(default_factory=dict)
    """Images per split; `none` for images without."""
    several: bool = False
    """Whether images have several labels."""
    groups: int = 0
    says: tuple[str, ...] = ()
    """Parts of the summary."""
    error: str = ""
    """A regular expression for the error."""
    target: str = ""
    """The file that is given, if it is not the folder."""
    settings: dict[str, Any] = field(default_factory=dict)


LAYOUTS: dict[str, Layout] = {}


def layout(**expected: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function that writes a layout below a folder."""

    def register(write: Callable[[Path], None]) -> Callable[[Path], None]:
        LAYOUTS[write.__name__] = Layout(write, **expected)
        return write

    return register


def save(folder: Path, *names: str) -> None:
    """Save small images, no two alike."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = sum(map(ord, name)) * 7919
        image = Image.new("RGB", (8, 8), (number % 251, number // 251 % 251, len(name) * 5 % 251))
        image.putpixel((number % 8, number % 7), (255, number % 199, 0))
        image.save(path, "PNG")


def write_csv(path: Path, rows: Iterable[Sequence[Any]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


# competition folders with a table


@layout(
    classes={"agriculture": 4, "clear": 8, "haze": 8, "primary": 16, "road": 4, "water": 4},
    several=True,
    says=("labels.csv", "16 of 16 rows name an image in train/", "separated by a space"),
)
def satellite_tags(folder: Path) -> None:
    tags = ["clear primary", "haze primary water", "agriculture clear primary road", "haze primary"]
    save(folder, *(f"train/train_{n}.jpg" for n in range(16)))
    write_csv(folder / "labels.csv", [("image_name", "tags"), *((f"train_{n}", tags[n % 4]) for n in range(16))])


@layout(classes={"complex": 4, "frog_eye_leaf_spot": 8, "healthy": 4, "rust": 4, "scab": 8}, several=True)
def leaves_with_several_diseases(folder: Path) -> None:
    labels = ["healthy", "scab frog_eye_leaf_spot complex", "scab", "rust frog_eye_leaf_spot"]
    save(folder, *(f"train_images/{n:x}a.jpg" for n in range(16)), "test_images/zz.jpg")
    write_csv(folder / "train.csv", [("image", "labels"), *((f"{n:x}a.jpg", labels[n % 4]) for n in range(16))])
    write_csv(folder / "sample_submission.csv", [("image", "labels"), ("zz.jpg", "healthy")])


@layout(
    classes={"healthy": 4, "multiple": 4, "rust": 4, "scab": 4},
    says=("3 images without a label in train.csv ignored", "16 images listed without a file extension"),
)
def exclusive_columns_of_0_and_1(folder: Path) -> None:
    header = ("image_id", "healthy", "multiple", "rust", "scab")
    save(folder, *(f"images/Train_{n}.jpg" for n in range(16)), *(f"images/Test_{n}.jpg" for n in range(3)))
    write_csv(
        folder / "train.csv", [header, *((f"Train_{n}", *(int(n % 4 == k) for k in range(4))) for n in range(16))]
    )
    write_csv(folder / "test.csv", [("image_id",), *((f"Test_{n}",) for n in range(3))])
    write_csv(folder / "sample_submission.csv", [header, *((f"Test_{n}", 0.25, 0.25, 0.25, 0.25) for n in range(3))])


@layout(
    classes={"boston_bull": 4, "dingo": 4, "pekinese": 4},
    says=("not as class folders, because 'test', 'train' do not look like names of classes",),
)
def table_beside_train_and_test(folder: Path) -> None:
    breeds = ["boston_bull", "dingo", "pekinese"]
    save(folder, *(f"train/{n:032x}.jpg" for n in range(12)), "test/ff.jpg")
    write_csv(folder / "labels.csv", [("id", "breed"), *((f"{n:032x}", breeds[n % 3]) for n in range(12))])
    write_csv(folder / "sample_submission.csv", [("id", *breeds), ("ff", 0.3, 0.3, 0.4)])


@layout(classes={str(n): 3 for n in range(5)})
def grades_by_id(folder: Path) -> None:
    save(folder, *(f"train_images/{n:012x}.png" for n in range(15)), "test_images/aa.png")
    write_csv(folder / "train.csv", [("id_code", "diagnosis"), *((f"{n:012x}", n % 5) for n in range(15))])
    write_csv(folder / "test.csv", [("id_code",), ("aa",)])
    write_csv(folder / "sample_submission.csv", [("id_code", "diagnosis"), ("aa", 0)])


@layout(classes={"0": 8, "1": 4}, groups=3, says=("labels from 'target'", "groups from 'patient_id'"))
def skin_with_patients(folder: Path) -> None:
    header = (
        "image_name",
        "patient_id",
        "sex",
        "age_approx",
        "site_challenge",
        "diagnosis",
        "benign_malignant",
        "target",
    )
    kinds = [("melanoma", "malignant", 1), ("nevus", "benign", 0), ("nevus", "benign", 0)]
    rows = [(f"I_{n:04}", f"IP_{n // 4}", "male" if n % 2 else "", "45.0", "torso", *kinds[n % 3]) for n in range(12)]
    save(folder, *(f"jpeg/train/{row[0]}.jpg" for row in rows), "jpeg/test/I_9999.jpg")
    write_csv(folder / "train.csv", [header, *rows])
    write_csv(folder / "test.csv", [header[:5], ("I_9999", "IP_9", "male", "70.0", "torso")])


@layout(classes={"nv": 6, "mel": 6}, groups=6, says=("labels from 'dx'",))
def images_in_two_parts(folder: Path) -> None:
    save(folder, *(f"SKIN_images_part_{1 + n // 6}/S_{n:04}.jpg" for n in range(12)))
    rows = [(f"L_{n // 2}", f"S_{n:04}", "nv" if n % 2 else "mel", "histo", "80.0", "male", "back") for n in range(12)]
    header = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
    write_csv(folder / "SKIN_metadata.csv", [header, *rows])


@layout(classes={"Effusion": 4, "Infiltration": 4, "No Finding": 8}, several=True, groups=12)
def chest_findings(folder: Path) -> None:
    labels = ["No Finding", "Effusion|Infiltration", "No Finding"]
    save(folder, *(f"images_{1 + n // 6:03}/images/{n:08}_000.png" for n in range(12)))
    rows = [(f"{n:08}_000.png", labels[n % 3], n % 2, n, 58 + n, "MF"[n % 2], "PA") for n in range(12)]
    header = (
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    )
    write_csv(folder / "Data_Entry.csv", [header, *rows])


@layout(classes={"Cardiomegaly": 10, "Edema": 7}, splits={"train": 10, "valid": 4}, several=True,
        says=("train.csv: 2 cells of -1 (uncertain) read as no", "'Chest-v1/', which is not on this disk"))  # fmt: skip
def uncertain_findings(folder: Path) -> None:
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "Edema", "Cardiomegaly")
    flags = [("1.0", ""), ("0.0", "1.0"), ("-1.0", "1.0"), ("1.0", "1.0")]
    for split, count in (("train", 10), ("valid", 4)):
        names = [f"{split}/patient{n:05}/study1/view1_frontal.jpg" for n in range(count)]
        save(folder, *names)
        rows = [(f"Chest-v1/{name}", "Male", 30 + n, "Frontal", *flags[n % 4]) for n, name in enumerate(names)]
        write_csv(folder / f"{split}.csv", [header, *rows])


@layout(
    classes={"Blight": 4, "Mosaic Disease": 4, "Healthy": 4}, says=("class names from label_num_to_disease_map.json",)
)
def codes_with_a_map(folder: Path) -> None:
    save(folder, *(f"train_images/{n}.jpg" for n in range(12)), "test_images/99.jpg")
    write_csv(folder / "train.csv", [("image_id", "label"), *((f"{n}.jpg", n % 3) for n in range(12))])
    write_json(folder / "label_num_to_disease_map.json", {"0": "Blight", "1": "Mosaic Disease", "2": "Healthy"})


@layout(
    classes={"culture::french": 8, "tag::bird": 7, "tag::man": 4}, several=True, says=("class names from labels.csv",)
)
def museum_attributes(folder: Path) -> None:
    ids = ["0 1", "0 1", "2"]
    save(folder, *(f"train/{n:016x}.png" for n in range(12)))
    rows = [(f"{n:016x}", ids[n % 3] if n < 10 else "2" if n % 2 else "0") for n in range(12)]
    write_csv(folder / "train.csv", [("id", "attribute_ids"), *rows])
    write_csv(
        folder / "labels.csv",
        [("attribute_id", "attribute_name"), (0, "culture::french"), (1, "tag::bird"), (2, "tag::man")],
    )


@layout(classes={"0": 4, "1": 8}, says=("labels from 'has_cactus'",))
def label_column_of_an_unusual_name(folder: Path) -> None:
    save(folder, *(f"train/train/{n:04}.jpg" for n in range(12)), "test/test/99.jpg")
    write_csv(folder / "train.csv", [("id", "has_cactus"), *((f"{n:04}.jpg", int(n % 3 > 0)) for n in range(12))])


@layout(
    classes={"new_whale": 6},
    says=("--min-per-class 2 leaves such classes out, --other NAME merges them",),
    splits={"none": 12},
)
def classes_with_one_image(folder: Path) -> None:
    save(folder, *(f"train/{n:08x}.jpg" for n in range(12)))
    rows = [(f"{n:08x}.jpg", "new_whale" if n % 2 else f"w_{n:07x}") for n in range(12)]
    write_csv(folder / "train.csv", [("Image", "Id"), *rows])


LAYOUTS["rare_classes_joined"] = Layout(
    classes_with_one_image, {"new_whale": 6, "rare": 6}, settings={"other": "rare"}, says=("merged into 'rare'",)
)
LAYOUTS["rare_classes_left_out"] = Layout(
    classes_with_one_image, error="All images are of one class, 'new_whale'", settings={"min_per_class": 2}
)


@layout(classes={"dolphin": 6, "whale": 6})
def ids_of_landmarks_in_nested_folders(folder: Path) -> None:
    names = [f"{n:016x}" for n in range(160, 172)]
    save(folder, *(f"train/{name[0]}/{name[-2]}/{name[-1]}/{name}.jpg" for name in names))
    rows = [(name, ["whale", "dolphin"][n % 2], f"i{n // 3}") for n, name in enumerate(names)]
    write_csv(folder / "train.csv", [("image", "species", "note"), *rows])


@layout(classes={"no": 6, "yes": 6}, says=("labels from 'tumor'",))
def ids_of_tiffs_without_ending(folder: Path) -> None:
    save(folder, *(f"train/{n:040x}.tif" for n in range(12)), "test/ab.tif")
    rows = [(f"{n:040x}", "yes" if n % 2 else "no") for n in range(12)]
    write_csv(folder / "train_labels.csv", [("id", "tumor"), *rows])


@layout(classes={"MEL": 4, "NV": 4, "BCC": 4}, says=("3 columns of 0 and 1",))
def challenge_with_two_tables(folder: Path) -> None:
    save(folder, *(f"Training_Input/I_{n:04}.jpg" for n in range(12)))
    rows = [(f"I_{n:04}", *(float(n % 3 == k) for k in range(3))) for n in range(12)]
    write_csv(folder / "Training_GroundTruth.csv", [("image", "MEL", "NV", "BCC"), *rows])
    facts = [(f"I_{n:04}", 40 + 5 * (n % 9), "torso", f"L{n}", "male") for n in range(12)]
    write_csv(folder / "Training_Metadata.csv", [("image", "age_approx", "anatom_site", "lesion_id", "sex"), *facts])


# split folders and class folders


@layout(classes={"sea": 6, "street": 6}, splits={"train": 8, "test": 4}, says=("4 images in 'seg_pred' ignored",))
def folders_of_splits_twice(folder: Path) -> None:
    save(folder, *(f"seg_train/seg_train/{['sea', 'street'][n % 2]}/{n}.jpg" for n in range(8)))
    save(folder, *(f"seg_test/seg_test/{['sea', 'street'][n % 2]}/{n}.jpg" for n in range(8, 12)))
    save(folder, *(f"seg_pred/seg_pred/{n}.jpg" for n in range(12, 16)))


@layout(classes={"NORMAL": 6, "PNEUMONIA": 6}, splits={"train": 6, "valid": 2, "test": 4})
def nested_copy_and_macosx(folder: Path) -> None:
    for base in ("chest_xray", "chest_xray/chest_xray"):
        for split, count in (("train", 6), ("val", 2), ("test", 4)):
            save(folder, *(f"{base}/{split}/{['NORMAL', 'PNEUMONIA'][n % 2]}/{split}{n}.jpeg" for n in range(count)))
    hidden = folder / "chest_xray/__MACOSX/chest_xray/train/NORMAL/._train0.jpeg"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(b"\x00\x05\x16\x07Mac OS X")


@layout(classes={"Cat": 6, "Dog": 5}, says=("1 empty file ('666.jpg')", "'Thumbs.db'"))
def pets_with_readme(folder: Path) -> None:
    save(folder, *(f"PetImages/{['Cat', 'Dog'][n % 2]}/{n}.jpg" for n in range(10)))
    (folder / "PetImages/Cat/666.jpg").write_bytes(b"")
    (folder / "PetImages/Dog/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "readme[1].txt").write_text("x")
    (folder / "MSR-LA - 3467.docx").write_bytes(b"PK")


@layout(classes={"n01": 6, "n02": 10}, splits={"train": 12, "valid": 4}, says=("one folder per class",))
def noisy_labels_beside_folders(folder: Path) -> None:
    rows = [("path", "noisy_labels_0", "noisy_labels_1", "noisy_labels_5", "is_valid")]
    for n in range(16):
        split, label = ("val" if n % 4 == 0 else "train"), ["n01", "n02"][n % 2 if n % 4 else n // 4 % 2]
        rows.append((name := f"{split}/{label}/{label}_{n}.JPEG", label, label, label, str(split == "val")))
        save(folder, name)
    write_csv(folder / "noisy.csv", rows)


LAYOUTS["noisy_labels_by_name_of_the_column"] = Layout(
    noisy_labels_beside_folders, {"n01": 6, "n02": 10}, {"train": 12, "valid": 4},
    settings={"label_col": "noisy_labels_5"}, says=("labels from 'noisy_labels_5'",),
)  # fmt: skip


@layout(classes={"3": 6, "7": 10}, splits={"train": 12, "valid": 4}, says=("which would give the same classes",))
def table_that_repeats_the_folders(folder: Path) -> None:
    rows: list[tuple[Any, ...]] = [("name", "label")]
    for n in range(16):
        split, label = ("valid" if n % 4 == 0 else "train"), "37"[n % 2 if n % 4 else n // 4 % 2]
        rows.append((name := f"{split}/{label}/{n}.png", int(label == "7")))
        save(folder, name)
    write_csv(folder / "labels.csv", rows)


@layout(classes={str(n): 2 for n in range(12)}, says=("0 2, 1 2, 2 2, 3 2",))
def numbered_folders(folder: Path) -> None:
    save(folder, *(f"{n % 12}/{n}.jpg" for n in range(24)))


@layout(error=r"No training image of 'c', 'd', though 'valid' has some.*--split random")
def more_classes_in_val(folder: Path) -> None:
    save(
        folder,
        *(f"train/{'ab'[n % 2]}/{n}.jpg" for n in range(8)),
        *(f"val/{'abcd'[n % 4]}/{n}.jpg" for n in range(8, 16)),
    )


@layout(classes={"a": 4, "b": 4})
def hidden_checkpoints(folder: Path) -> None:
    save(folder, *(f"{'ab'[n % 2]}/{n}.jpg" for n in range(8)))
    save(folder, ".ipynb_checkpoints/1-checkpoint.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg")


@layout(classes={"001.Albatross": 4, "002.Auklet": 4}, splits={"train": 4, "test": 4})
def birds_with_text_files(folder: Path) -> None:
    classes = ["001.Albatross", "002.Auklet"]
    names = [f"{classes[n % 2]}/{classes[n % 2][4:]}_{n:04}.jpg" for n in range(8)]
    save(folder / "BIRDS/images", *names)
    write_lines(folder / "BIRDS/images.txt", (f"{n + 1} {name}" for n, name in enumerate(names)))
    write_lines(folder / "BIRDS/image_class_labels.txt", (f"{n + 1} {n % 2 + 1}" for n in range(8)))
    write_lines(folder / "BIRDS/train_test_split.txt", (f"{n + 1} {int(n % 4 < 2)}" for n in range(8)))
    write_lines(folder / "BIRDS/classes.txt", (f"{k + 1} {name}" for k, name in enumerate(classes)))
    (folder / "attributes.txt").write_text("1 x")


@layout(classes={"AnnualCrop": 4, "Forest": 4, "River": 4})
def classes_one_folder_deeper(folder: Path) -> None:
    save(folder, *(f"2750/{['AnnualCrop', 'Forest', 'River'][n % 3]}/x_{n}.jpg" for n in range(12)))


@layout(classes={"Birnen": 4, "Äpfel": 4}, target="photos.zip")
def zip_made_on_a_mac(folder: Path) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for n in range(8):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (n * 9, 0, 0)).save(content, "JPEG")
            label = ["Äpfel", "Birnen"][n % 2]
            archive.writestr(f"My photos/{label}/{n}.jpg", content.getvalue())
            archive.writestr(f"__MACOSX/My photos/{label}/._{n}.jpg", b"\x00\x05\x16\x07")
        archive.writestr("My photos/.DS_Store", b"\0\0\0\1Bud1")


@layout(
    classes={"cats": 6, "dogs": 6},
    splits={"train": 8, "valid": 4},
    says=("2 images in 'test1' ignored", "6 images in 'sample' ignored"),
)
def sample_and_test1_beside(folder: Path) -> None:
    for base, count in (("", 8), ("sample/", 4)):
        save(folder, *(f"{base}train/{['cats', 'dogs'][n % 2]}/{n}.jpg" for n in range(count)))
        save(folder, *(f"{base}valid/{['cats', 'dogs'][n % 2]}/{n}.jpg" for n in range(50, 50 + count // 2)))
    save(folder, "test1/1.jpg", "test1/2.jpg")


@layout(classes={"A": 5, "B": 5}, splits={"train": 10}, says=("2 images in",))
def unlabeled_test_in_a_folder_of_its_own(folder: Path) -> None:
    save(folder, *(f"asl_train/asl_train/{'AB'[n % 2]}/{n}.jpg" for n in range(10)))
    save(folder, "asl_test/asl_test/A_test.jpg", "asl_test/asl_test/B_test.jpg")


@layout(
    classes={"c0": 6, "c1": 6}, groups=3, says=("not as class folders in 'train', which would give the same classes",)
)
def drivers(folder: Path) -> None:
    save(folder, *(f"imgs/train/c{n % 2}/img_{n}.jpg" for n in range(12)), "imgs/test/img_99.jpg")
    rows = [(f"p{n // 4:03}", f"c{n % 2}", f"img_{n}.jpg") for n in range(12)]
    write_csv(folder / "driver_imgs_list.csv", [("subject", "classname", "img"), *rows])


@layout(classes={"daisy": 4, "rose": 4}, says=("2 images in 'test' ignored: it looks like a split",))
def classes_beside_test_images(folder: Path) -> None:
    save(
        folder,
        *(f"flowers/{['daisy', 'rose'][n % 2]}/{n}.jpg" for n in range(8)),
        "flowers/test/9.jpg",
        "flowers/test/8.jpg",
    )


@layout(classes={"good": 6, "rot": 6}, splits={"train": 8, "test": 4}, says=("each with a folder per split",))
def splits_below_the_classes(folder: Path) -> None:
    save(folder, *(f"{['good', 'rot'][n % 2]}/{'train' if n < 8 else 'test'}/{n}.png" for n in range(12)))


@layout(error=r"of 'broken', 'scratch', though 'test' has some. The training split has only one class.*--split random")
def anomaly_detection(folder: Path) -> None:
    save(folder, *(f"train/good/{n:03}.png" for n in range(6)))
    save(folder, *(f"test/{['good', 'broken', 'scratch'][n % 3]}/{n:03}.png" for n in range(6)))
    save(folder, *(f"ground_truth/{['broken', 'scratch'][n % 2]}/{n:03}_mask.png" for n in range(4)))


LAYOUTS["anomaly_detection_split_anew"] = Layout(
    anomaly_detection, {"good": 8, "broken": 2, "scratch": 2}, {"train": 6, "test": 6}, settings={"split": "random"}
)


@layout(error=r"each with its own splits and classes. Pass one of these folders")
def anomaly_detection_of_several_things(folder: Path) -> None:
    for thing in ("bottle", "cable"):
        anomaly_detection(folder / thing)


@layout(classes={"animals": 6, "vehicles": 6}, says=("folders inside the class folders not used: 'cat', 'dog', 'bus'",))
def classes_and_subclasses(folder: Path) -> None:
    names = ["animals/cat", "vehicles/car", "animals/dog", "vehicles/bus"]
    save(folder, *(f"{names[n % 4]}/{n}.jpg" for n in range(12)))


@layout(
    classes={"farm1": 8, "farm2": 8},
    says=("not used: 'day1', 'day2'; --label-from '([^/]+)/[^/]+$' makes the innermost folders the classes",),
)
def days_of_farms(folder: Path) -> None:
    parts = (("farm1", "farm2"), ("day1", "day2"), ("cow", "horse"), ("1", "2"))
    save(folder, *("/".join(names) + ".jpg" for names in product(*parts)))


@layout(classes={"TREE": 4, "ROCK": 4}, says=("1 other file",))
def upper_case_endings(folder: Path) -> None:
    save(folder, *(f"DATA/{['TREE', 'ROCK'][n % 2]}/IMG_{n}.JPG" for n in range(8)))
    (folder / "DATA/ROCK/notes.TXT").write_text("x")
    (folder / "DATA/.DS_Store").write_bytes(b"\0")


@layout(
    classes={"Ailanthus": 4, "Birch": 4}, says=("class names from cat_to_name.json",), splits={"train": 6, "valid": 2}
)
def numbered_folders_with_names(folder: Path) -> None:
    save(folder, *(f"{'train' if n < 6 else 'valid'}/{n % 2 + 1}/image_{n:05}.jpg" for n in range(8)))
    write_json(folder / "cat_to_name.json", {"1": "Ailanthus", "2": "Birch"})


@layout(classes={"Apple": 6, "Banana": 6}, splits={"train": 8, "test": 4}, says=("'test-multiple_fruits'",))
def fruits(folder: Path) -> None:
    save(
        folder,
        *(f"fruits/{'Training' if n < 8 else 'Test'}/{['Apple', 'Banana'][n % 2]}/{n}_100.jpg" for n in range(12)),
    )
    save(folder, "fruits/test-multiple_fruits/mix.jpg")
    (folder / "fruits/readme.md").write_text("x")


@layout(classes={"oak": 4, "pine": 4}, says=("1 image in 'results' ignored: outside the class folders",))
def results_beside_the_data(folder: Path) -> None:
    save(folder, *(f"dataset/{['oak', 'pine'][n % 2]}/{n}.jpg" for n in range(8)), "results/plot.png")


@layout(classes={"oak": 4, "pine": 4}, says=("8 images in 'segmentations' ignored",))
def segmentations_beside_the_images(folder: Path) -> None:
    for part in ("images", "segmentations"):
        save(folder, *(f"{part}/{['oak', 'pine'][n % 2]}/{n}.png" for n in range(8)))


@layout(error=r"contains 'color', 'grayscale', 'segmented' with the same class folders\. Pass one of them")
def three_versions_of_all_images(folder: Path) -> None:
    for part in ("color", "grayscale", "segmented"):
        save(folder, *(f"plants/{part}/{['oak', 'pine'][n % 2]}/{n}.png" for n in range(8)))


@layout(classes={"photos": 4, "paintings": 4})
def classes_named_like_containers(folder: Path) -> None:
    save(folder, *(f"{['photos', 'paintings'][n % 2]}/{n % 4}/{n}.png" for n in range(8)))


@layout(classes={"a": 6, "b": 6}, splits={"train": 8, "valid": 4}, says=("splits from folds.csv",))
def table_of_folds_beside(folder: Path) -> None:
    save(folder, *(f"train/{n}.png" for n in range(12)))
    write_csv(folder / "train.csv", [("id", "label"), *((n, "ab"[n % 2]) for n in range(12))])
    write_csv(folder / "folds.csv", [("id", "fold"), *((n, n % 3) for n in range(12))])


@layout(error=r"'text' is different in every row\. Pass --label-col COLUMN")
def captions_only(folder: Path) -> None:
    save(folder, *(f"train/{n}.png" for n in range(12)))
    write_csv(
        folder / "train/metadata.csv", [("file_name", "text"), *((f"{n}.png", f"picture {n}") for n in range(12))]
    )


@layout(error=r"has 3 columns of 0 and 1 \('Focus', 'Eyes', 'Face'\) and one of numbers \('Pawpularity'\)")
def flags_and_a_number(folder: Path) -> None:
    save(folder, *(f"train/{n:032x}.jpg" for n in range(40)))
    rows = [(f"{n:032x}", 0, n % 2, int(n % 3 > 0), 1 + 2 * n) for n in range(40)]
    write_csv(folder / "train.csv", [("Id", "Focus", "Eyes", "Face", "Pawpularity"), *rows])


@layout(classes={"n01": 6, "n02": 6}, splits={"train": 8, "valid": 4}, says=("the classes of boxes",))
def solutions_with_boxes(folder: Path) -> None:
    train = [f"{['n01', 'n02'][n % 2]}/{['n01', 'n02'][n % 2]}_{n}" for n in range(8)]
    save(folder, *(f"Data/train/{name}.JPEG" for name in train), *(f"Data/val/val_{n:08}.JPEG" for n in range(4)))
    rows = [(name.rpartition("/")[2], f"{name[:3]} 1 2 3 4") for name in train]
    write_csv(folder / "LOC_train_solution.csv", [("ImageId", "PredictionString"), *rows])
    rows = [(f"val_{n:08}", f"{['n01', 'n02'][n % 2]} 1 2 30 4 ") for n in range(4)]
    write_csv(folder / "LOC_val_solution.csv", [("ImageId", "PredictionString"), *rows])


@layout(classes={"label_0": 4, "label_1": 4})
def classes_that_are_labels(folder: Path) -> None:
    save(folder, *(f"label_{n % 2}/{n}.png" for n in range(8)))


# tables given as a file


@layout(classes={"x": 4, "y": 4}, target="table.csv")
def columns_img_and_lbl(folder: Path) -> None:
    save(folder, *(f"ims/{n}.jpg" for n in range(8)))
    write_csv(folder / "table.csv", [("img", "lbl"), *((f"ims/{n}.jpg", "xy"[n % 2]) for n in range(8))])


@layout(classes={"x": 20, "y": 18}, target="table.csv",
        says=("1 row without an image left out", "1 row without a label left out"))  # fmt: skip
def rows_with_gaps(folder: Path) -> None:
    save(folder, *(f"ims/{n}.jpg" for n in range(40)))
    rows = [("" if n == 3 else f"ims/{n}.jpg", "" if n == 5 else "xy"[n % 2]) for n in range(40)]
    write_csv(folder / "table.csv", [("image", "label"), *rows])


@layout(error=r"10 of 40 images in column 'image' of .* are not in .*'ims/0.png'. The closest match is 'ims/0.jpg'",
        target="table.csv")  # fmt: skip
def names_with_another_ending(folder: Path) -> None:
    save(folder, *(f"ims/{n}.jpg" for n in range(40)))
    rows = [(f"ims/{n}.{'png' if n < 10 else 'jpg'}", "xy"[n % 2]) for n in range(40)]
    write_csv(folder / "table.csv", [("image", "label"), *rows])


LAYOUTS["missing_images_dropped"] = Layout(
    names_with_another_ending, {"x": 15, "y": 15}, target="table.csv", settings={"missing": "drop"},
    says=("10 images not in",),
)  # fmt: skip


@layout(classes={"x": 4, "y": 4}, target="labels.tsv", says=("8 Windows paths",))
def windows_paths(folder: Path) -> None:
    save(folder, *(f"photos/sub/{n}.jpg" for n in range(8)))
    rows = [(f"photos\\sub\\{n}.jpg", "xy"[n % 2]) for n in range(8)]
    write_csv(folder / "labels.tsv", [("path", "label"), *rows], delimiter="\t")


@layout(classes={"x": 4, "y": 4}, target="labels.csv", says=("8 URLs",))
def urls(folder: Path) -> None:
    save(folder, *(f"photos/{n}.jpg" for n in range(8)))
    rows = [(f"https://example.org/farm{n}/{n}.jpg?v=1", "xy"[n % 2]) for n in range(8)]
    write_csv(folder / "labels.csv", [("image", "label"), *rows])


@layout(classes={"x": 4, "y": 4}, target="labels.csv", says=("'/data/shared/project/', which is not on this disk",))
def paths_of_another_machine(folder: Path) -> None:
    save(folder, *(f"photos/{n % 2}/{n // 2}.jpg" for n in range(8)))
    rows = [(f"/data/shared/project/photos/{n % 2}/{n // 2}.jpg", "xy"[n % 2]) for n in range(8)]
    write_csv(folder / "labels.csv", [("image", "label"), *rows])


@layout(classes={"cat": 5, "dog": 5}, target="labels.csv", says=("labels.csv has no header",))
def table_without_a_header(folder: Path) -> None:
    save(folder, *(f"im/{n}.jpg" for n in range(10)))
    write_csv(folder / "labels.csv", [(f"im/{n}.jpg", ["cat", "dog"][n % 2]) for n in range(10)])


@layout(error=r"10 of 10 images in column 'id' of .* are not in .*'0'. That folder has images such as 'im/00000.jpg'")
def numbers_without_their_zeros(folder: Path) -> None:
    save(folder, *(f"im/{n:05}.jpg" for n in range(10)))
    write_csv(folder / "labels.csv", [("id", "label"), *((n, "ab"[n % 2]) for n in range(10))])


@layout(error=r"'age' of table.csv holds 40 different numbers \(20 to 39.5\): that is regression.*--bins K",
        target="table.csv")  # fmt: skip
def ages(folder: Path) -> None:
    save(folder, *(f"ims/{n}.jpg" for n in range(40)))
    write_csv(folder / "table.csv", [("image", "age"), *((f"ims/{n}.jpg", 20 + n * 0.5) for n in range(40))])


LAYOUTS["ages_in_bins"] = Layout(
    ages, {"20 to 26.5": 13, "26.5 to 33": 13, "33 to 39.5": 14}, target="table.csv", settings={"bins": 3},
    says=("in 3 bins",),
)  # fmt: skip


@layout(
    classes={"x": 10, "y": 10},
    splits={"train": 16, "valid": 4},
    target="train_folds.csv",
    says=("fold 0 of 'kfold' is the valid split",),
)
def column_of_folds(folder: Path) -> None:
    save(folder, *(f"train/{n}.jpg" for n in range(20)))
    rows = [(f"train/{n}.jpg", "xy"[n % 2], n % 5) for n in range(20)]
    write_csv(folder / "train_folds.csv", [("image_id", "label", "kfold"), *rows])


@layout(classes={"car": 6, "horse": 3, "person": 9}, splits={"train": 9, "valid": 3}, several=True)
def column_is_valid(folder: Path) -> None:
    labels = ["car", "horse person", "person", "car person"]
    save(folder, *(f"train/{n:06}.jpg" for n in range(12)))
    rows = [(f"{n:06}.jpg", labels[n % 4], str(n % 4 == 0)) for n in range(12)]
    write_csv(folder / "train.csv", [("fname", "labels", "is_valid"), *rows])


@layout(classes={"no": 6, "yes": 6}, splits={"train": 8, "valid": 2, "test": 2}, target="labels.csv")
def columns_is_valid_and_is_test(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    rows = [(f"{n}.jpg", ["no", "yes"][n % 2], n < 2, n >= 10) for n in range(12)]
    write_csv(folder / "labels.csv", [("file", "class", "is_valid", "is_test"), *rows])


@layout(classes={"false": 6, "true": 6}, target="labels.csv", says=("labels from 'smiling'",))
def booleans(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    write_csv(folder / "labels.csv", [("file", "smiling"), *((f"{n}.jpg", str(n % 2 == 0)) for n in range(12))])


@layout(classes={"1": 6, "2": 4, "10": 2}, target="labels.csv", says=("1 6, 2 4, 10 2",))
def whole_floats(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    labels = ["1.0", "2.0", "1.0", "2.0", "1.0", "10.0"]
    write_csv(folder / "labels.csv", [("file", "target"), *((f"{n}.jpg", labels[n % 6]) for n in range(12))])


@layout(classes={"Bäume": 6, "Straße": 6}, target="labels.csv", says=("read as cp1252, which is a guess",))
def western_encoding(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    rows = [(f"{n}.jpg", ["Bäume", "Straße"][n % 2]) for n in range(12)]
    write_csv(folder / "labels.csv", [("file", "label"), *rows], encoding="cp1252")


@layout(classes={"松": 6, "樫": 6}, target="labels.csv", settings={"encoding": "shift_jis"})
def japanese_encoding(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    rows = [(f"{n}.jpg", "松樫"[n % 2]) for n in range(12)]
    write_csv(folder / "labels.csv", [("file", "label"), *rows], encoding="shift_jis")


@layout(classes={"great pyrenees": 6, "boston terrier": 6}, target="labels.csv")
def class_names_with_spaces(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(12)))
    rows = [(f"{n}.jpg", ["great pyrenees", "boston terrier"][n % 2]) for n in range(12)]
    write_csv(folder / "labels.csv", [("file", "breed"), *rows])


LAYOUTS["several_labels_taken_as_one"] = Layout(
    satellite_tags, settings={"task": "single"}, says=("looks like several labels separated by a space",),
    classes={"clear primary": 4, "haze primary water": 4, "agriculture clear primary road": 4, "haze primary": 4},
)  # fmt: skip
LAYOUTS["delimiter_given"] = Layout(
    class_names_with_spaces, {"great": 6, "pyrenees": 6, "boston": 6, "terrier": 6}, several=True,
    target="labels.csv", settings={"label_delim": " "},
)  # fmt: skip


@layout(classes={"big": 6, "red": 5, "round": 7}, splits={"train": 8, "valid": 4}, several=True)
def classes_csv_in_each_split(folder: Path) -> None:
    for split, first, count in (("train", 0, 8), ("valid", 50, 4)):
        names = [f"{n}_jpg.rf.{n:032x}.jpg" for n in range(first, first + count)]
        save(folder / split, *names)
        rows = [f"{name}, {int(n % 2 == 0)}, {int(n % 3 == 0)}, {int(n % 3 > 0)}" for n, name in enumerate(names)]
        write_lines(folder / split / "_classes.csv", ["filename, big, red, round", *rows])
    (folder / "README.roboflow.txt").write_text("x")


def metadata_rows(split: str) -> list[tuple[str, str]]:
    return [(f"{n:04}.png", ["fish", "dog"][n % 2]) for n in range(8 if split == "train" else 4)]


@layout(classes={"dog": 6, "fish": 6}, splits={"train": 8, "test": 4})
def metadata_csv(folder: Path) -> None:
    for split in ("train", "test"):
        save(folder / split, *(name for name, _ in metadata_rows(split)))
        write_csv(folder / split / "metadata.csv", [("file_name", "label"), *metadata_rows(split)])


@layout(classes={"dog": 6, "fish": 6}, splits={"train": 8, "test": 4})
def metadata_jsonl(folder: Path) -> None:
    for split in ("train", "test"):
        save(folder / split, *(name for name, _ in metadata_rows(split)))
        records = [json.dumps({"file_name": name, "label": label}) for name, label in metadata_rows(split)]
        write_lines(folder / split / "metadata.jsonl", records)


@layout(classes={"dog": 6, "fish": 6}, splits={"train": 8, "test": 4})
def metadata_parquet(folder: Path) -> None:
    import pandas as pd

    for split in ("train", "test"):
        save(folder / split, *(name for name, _ in metadata_rows(split)))
        pd.DataFrame(metadata_rows(split), columns=["file_name", "label"]).to_parquet(
            folder / split / "metadata.parquet"
        )


@layout(classes={"20 limit": 6, "stop": 8}, splits={"train": 8, "test": 6})
def signs_with_two_tables(folder: Path) -> None:
    header = ("Width", "Height", "Roi.X1", "ClassId", "Path")
    train = [(30 + n, 30, 5, n % 2, f"Train/{n % 2}/{n:05}.png") for n in range(8)]
    test = [(40, 41, 5, int(n > 1), f"Test/{n:05}.png") for n in range(6)]
    save(folder, *(row[-1] for row in (*train, *test)), "Meta/0.png", "Meta/1.png")
    write_csv(folder / "Train.csv", [header, *train])
    write_csv(folder / "Test.csv", [header, *test])
    write_csv(
        folder / "Meta.csv", [("Path", "ClassId", "Sign"), ("Meta/0.png", 0, "20 limit"), ("Meta/1.png", 1, "stop")]
    )


@layout(classes={"Crop": 6, "Forest": 6}, splits={"train": 6, "valid": 3, "test": 3}, says=("labels from 'ClassName'",))
def land_use_with_three_tables(folder: Path) -> None:
    names = [["Crop", "Forest"][n % 2] for n in range(12)]
    files = [f"{label}/{label}_{n}.jpg" for n, label in enumerate(names)]
    save(folder, *files)
    for split, part in (("train", range(6)), ("validation", range(6, 9)), ("test", range(9, 12))):
        rows = [(k, files[n], n % 2, names[n]) for k, n in enumerate(part)]
        write_csv(folder / f"{split}.csv", [("", "Filename", "Label", "ClassName"), *rows])
    write_json(folder / "label_map.json", {"Crop": 0, "Forest": 1})


@layout(classes={"Smiling": 6, "Young": 8}, splits={"train": 6, "valid": 3, "test": 3}, several=True,
        says=("splits from list_eval_partition.csv",))  # fmt: skip
def faces_with_a_table_of_splits(folder: Path) -> None:
    save(folder, *(f"img_align/img_align/{n:06}.jpg" for n in range(12)))
    rows = [(f"{n:06}.jpg", 1 if n % 2 else -1, 1 if n % 3 else -1) for n in range(12)]
    write_csv(folder / "list_attr.csv", [("image_id", "Smiling", "Young"), *rows])
    splits = [(f"{n:06}.jpg", 0 if n < 6 else 1 if n < 9 else 2) for n in range(12)]
    write_csv(folder / "list_eval_partition.csv", [("image_id", "partition"), *splits])


@layout(classes={"Smiling": 6, "Young": 8}, splits={"train": 6, "valid": 3, "test": 3}, several=True)
def faces_with_text_files(folder: Path) -> None:
    save(folder, *(f"img_align/{n:06}.jpg" for n in range(12)))
    rows = [f"{n:06}.jpg {1 if n % 2 else -1:>2} {1 if n % 3 else -1:>2}" for n in range(12)]
    write_lines(folder / "Anno/list_attr.txt", ["12", "Smiling Young", *rows])
    write_lines(
        folder / "Eval/list_eval_partition.txt", (f"{n:06}.jpg {0 if n < 6 else 1 if n < 9 else 2}" for n in range(12))
    )


@layout(classes={"cat": 4, "dog": 4}, target="labels.xlsx")
def excel_sheet(folder: Path) -> None:
    import openpyxl

    save(folder, *(f"photos/{n}.jpg" for n in range(8)))
    book = openpyxl.Workbook()
    for row in [("file", "label"), *((f"photos/{n}.jpg", ["cat", "dog"][n % 2]) for n in range(8))]:
        book.active.append(row)
    book.save(folder / "labels.xlsx")


@layout(error=r"labels.xlsx is damaged or not an Excel file .*Save it again as", target="labels.xlsx")
def broken_excel_sheet(folder: Path) -> None:
    (folder / "labels.xlsx").write_bytes(b"PK\x03\x04")


# annotations of tools


def write_coco(path: Path, names: Sequence[str], categories: Sequence[Sequence[int]], boxes: bool = False) -> None:
    annotations = [(n, category) for n, ids in enumerate(categories) for category in ids]
    content = {
        "images": [{"id": n + 100, "file_name": name, "width": 8, "height": 8} for n, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": n + 100, "category_id": category, **({"bbox": [0, 0, 4, 4]} if boxes else {})}
            for k, (n, category) in enumerate(annotations)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("nothing", "cat", "dog"))],
    }
    write_json(path, content)


@layout(classes={"cat": 6, "dog": 6})
def coco_of_one_split(folder: Path) -> None:
    save(folder, *(f"train/images/{n // 4:03}/{n:03}.jpg" for n in range(12)))
    names = [f"images/{n // 4:03}/{n:03}.jpg" for n in range(12)]
    write_coco(folder / "train/metadata.json", names, [[1 + n % 2] for n in range(12)])


@layout(classes={"cat": 6, "dog": 9}, splits={"train": 8, "valid": 4}, several=True, says=("the classes of its boxes",))
def coco_of_boxes_in_each_split(folder: Path) -> None:
    for split, count in (("train", 8), ("valid", 4)):
        names = [f"{split}{n}_jpg.rf.{n:08x}.jpg" for n in range(count)]
        save(folder / split, *names)
        ids = [[1, 2] if n % 4 == 0 else [1 + n % 2] for n in range(count)]
        write_coco(folder / split / "_annotations.coco.json", names, ids, boxes=True)


@layout(classes={"cat": 6, "dog": 6}, splits={"train": 8, "valid": 4})
def coco_of_species(folder: Path) -> None:
    names = [f"train_val2019/Plants/{n % 2}/{n:032x}.jpg" for n in range(12)]
    save(folder, *names)
    write_coco(folder / "train2019.json", names[:8], [[1 + n % 2] for n in range(8)])
    write_coco(folder / "val2019.json", names[8:], [[1 + n % 2] for n in range(8, 12)])


@layout(classes={"cat": 4, "dog": 4})
def fiftyone_export(folder: Path) -> None:
    save(folder, *(f"data/{n:06}.jpg" for n in range(8)))
    write_json(folder / "labels.json", {"classes": ["cat", "dog"], "labels": {f"{n:06}": n % 2 for n in range(8)}})


def label_studio_tasks(choices: Callable[[int], list[str]]) -> list[dict[str, Any]]:
    return [
        {
            "id": n,
            "data": {"image": f"/data/upload/3/0a1b2c{n:02x}-photo_{n}.jpg"},
            "annotations": [
                {"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": choices(n)}}]},
            ],
        }
        for n in range(8)
    ]


@layout(classes={"cat": 4, "dog": 4}, target="project.json")
def label_studio_export(folder: Path) -> None:
    save(folder, *(f"photos/photo_{n}.jpg" for n in range(8)))
    write_json(folder / "project.json", label_studio_tasks(lambda n: [["cat", "dog"][n % 2]]))


@layout(classes={"cat": 4, "dog": 6}, several=True, target="project.csv")
def label_studio_csv(folder: Path) -> None:
    save(folder, *(f"photos/photo_{n}.jpg" for n in range(8)))
    labels = ["cat", "dog", '{"choices": ["cat", "dog"]}', "dog"]
    rows = [(1, 7, f"/data/local-files/?d=photos/photo_{n}.jpg", labels[n % 4], 3.5, n) for n in range(8)]
    write_csv(folder / "project.csv", [("annotation_id", "annotator", "image", "choice", "lead_time", "id"), *rows])


@layout(classes={"cat": 4, "dog": 4}, splits={"train": 6, "test": 2})
def cvat_export(folder: Path) -> None:
    save(folder, *(f"images/{n}.jpg" for n in range(8)))
    images = [f'<image id="{n}" name="{n}.jpg" subset="{"Train" if n < 6 else "Test"}" width="8" height="8">'
              f'<tag label="{["cat", "dog"][n % 2]}" source="manual"></tag></image>' for n in range(8)]  # fmt: skip
    write_lines(folder / "annotations.xml", ['<?xml version="1.0"?><annotations>', *images, "</annotations>"])


@layout(classes={"cat": 4, "dog": 6}, several=True, says=("the classes of its boxes",))
def voc_annotations(folder: Path) -> None:
    save(folder, *(f"JPEGImages/{n:06}.jpg" for n in range(8)))
    for n in range(8):
        names = ["cat", "dog"] if n % 4 == 0 else [["cat", "dog"][n % 2]]
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        write_lines(
            folder / f"Annotations/{n:06}.xml", [f"<annotation><filename>{n:06}.jpg</filename>{objects}</annotation>"]
        )


@layout(classes={"beagle": 4, "pug": 4}, says=("give --source voc to read PASCAL VOC XML instead",))
def boxes_beside_class_folders(folder: Path) -> None:
    for n in range(8):
        name = f"{['beagle', 'pug'][n % 2]}/{n}"
        save(folder, f"Images/{name}.jpg")
        objects = "<object><name>dog</name></object>"
        write_lines(
            folder / f"Annotation/{name}.xml", [f"<annotation><filename>{n}.jpg</filename>{objects}</annotation>"]
        )


@layout(classes={"cat": 5, "dog": 8}, splits={"train": 8, "valid": 2}, several=True, says=("the classes of its boxes",))
def yolo_with_data_yaml(folder: Path) -> None:
    for n in range(10):
        split = "train" if n < 8 else "val"
        save(folder, f"images/{split}/{n}.jpg")
        lines = [f"{k} 0.5 0.5 0.2 0.2" for k in ((0, 1, 1) if n % 4 == 0 else (n % 2,))]
        write_lines(folder / f"labels/{split}/{n}.txt", lines)
    write_lines(
        folder / "data.yaml", ["path: .", "train: images/train", "val: images/val", "names:", "  0: cat", "  1: dog"]
    )


@layout(classes={"cat": 5, "dog": 5}, splits={"train": 8, "valid": 2})
def yolo_classification(folder: Path) -> None:
    save(folder, *(f"{'train' if n < 8 else 'val'}/{['cat', 'dog'][n % 2]}/{n}.jpg" for n in range(10)))
    write_lines(folder / "data.yaml", ["train: train", "val: val", "names: [cat, dog]"])


@layout(classes={"cat": 4, "dog": 4})
def json_of_labels(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(8)))
    write_json(folder / "labels.json", {f"{n}.jpg": ["cat", "dog"][n % 2] for n in range(8)})


@layout(classes={"cat": 4, "dog": 4}, target="export.json")
def json_records(folder: Path) -> None:
    save(folder, *(f"pics/{n}.jpg" for n in range(8)))
    write_json(folder / "export.json", [{"image": f"pics/{n}.jpg", "choice": ["cat", "dog"][n % 2]} for n in range(8)])


@layout(classes={"cat": 8, "dog": 4}, several=True, target="min.json")
def label_studio_records(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(8)))
    choices = ["cat", {"choices": ["cat", "dog"]}]
    records = [{"image": f"s3://bucket/some/{n}.jpg", "id": n, "choice": choices[n % 2]} for n in range(8)]
    write_json(folder / "min.json", records)


# text files


@layout(classes={"apple_pie": 6, "waffles": 6}, splits={"train": 8, "test": 4})
def food_with_lists(folder: Path) -> None:
    names = [f"{['apple_pie', 'waffles'][n % 2]}/{1000 + n}" for n in range(12)]
    save(folder, *(f"food/images/{name}.jpg" for name in names))
    write_lines(folder / "food/meta/train.txt", names[:8])
    write_lines(folder / "food/meta/test.txt", names[8:])
    write_lines(folder / "food/meta/classes.txt", ["apple_pie", "waffles"])
    write_json(folder / "food/meta/train.json", {"apple_pie": names[0:8:2], "waffles": names[1:8:2]})


@layout(classes={"Abyssinian": 6, "great_pyrenees": 6}, splits={"train": 8, "test": 4})
def pets_with_lists(folder: Path) -> None:
    names = [f"{['Abyssinian', 'great_pyrenees'][n % 2]}_{n}" for n in range(12)]
    save(folder, *(f"images/{name}.jpg" for name in names))
    lines = [f"{name} {n % 2 + 1} {n % 2 + 1} 1" for n, name in enumerate(names)]
    write_lines(folder / "annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids", *lines])
    write_lines(folder / "annotations/trainval.txt", lines[:8])
    write_lines(folder / "annotations/test.txt", lines[8:])


@layout(classes={"0": 6, "1": 6}, splits={"train": 8, "valid": 4})
def wordnet_ids_with_numbers(folder: Path) -> None:
    train = [f"train/{['n01', 'n02'][n % 2]}/x_{n}.JPEG" for n in range(8)]
    valid = [f"val/ILSVRC_val_{n:08}.JPEG" for n in range(4)]
    save(folder, *train, *valid)
    write_lines(folder / "train.txt", (f"{name.removeprefix('train/')} {n % 2}" for n, name in enumerate(train)))
    write_lines(folder / "val.txt", (f"{name.removeprefix('val/')} {n % 2}" for n, name in enumerate(valid)))


@layout(classes={"banded": 6, "dotted": 6}, splits={"train": 6, "valid": 3, "test": 3}, says=("other lists not used",))
def textures_with_partitions(folder: Path) -> None:
    names = [f"{['banded', 'dotted'][n % 2]}/{['banded', 'dotted'][n % 2]}_{n:04}.jpg" for n in range(12)]
    save(folder, *(f"images/{name}" for name in names))
    for number in (1, 2):
        for split, part in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
            write_lines(folder / f"labels/{split}{number}.txt", part)


@layout(classes={"n01443537": 5, "n01629819": 5}, splits={"train": 6, "valid": 4})
def tiny_images_with_annotations(folder: Path) -> None:
    ids = ["n01443537", "n01629819"]
    save(folder, *(f"train/{ids[n % 2]}/images/{ids[n % 2]}_{n}.JPEG" for n in range(6)))
    save(folder, *(f"val/images/val_{n}.JPEG" for n in range(4)), *(f"test/images/test_{n}.JPEG" for n in range(4)))
    write_lines(folder / "val/val_annotations.txt", (f"val_{n}.JPEG\t{ids[n % 2]}\t0\t32\t44\t62" for n in range(4)))
    write_lines(folder / "words.txt", [f"{name}\tsomething" for name in ids])
    write_lines(folder / "wnids.txt", ids)


# names


@layout(error=r"--label-from auto for the text before the last number in each name \(Abyssinian 6, great_pyrenees 6\)")
def loose_pets(folder: Path) -> None:
    save(folder, *(f"images/{['Abyssinian', 'great_pyrenees'][n % 2]}_{n}.jpg" for n in range(12)))


LAYOUTS["loose_pets_by_name"] = Layout(
    loose_pets,
    {"Abyssinian": 6, "great_pyrenees": 6},
    settings={"label_from": "auto"},
    says=("the class is the text before the last number in the file name",),
)


@layout(error=r"no class folders. Pass --label-from auto for .* \(cat 6, dog 6\)\.$")
def loose_cats_and_dogs(folder: Path) -> None:
    save(folder, *(f"train/{['cat', 'dog'][n % 2]}.{n}.jpg" for n in range(12)), *(f"test1/{n}.jpg" for n in range(3)))


LAYOUTS["loose_cats_and_dogs_by_name"] = Layout(
    loose_cats_and_dogs, {"cat": 6, "dog": 6}, settings={"label_from": "auto"},
    says=("3 images in 'test1' ignored: no class in the name",),
)  # fmt: skip


@layout(error=r"auto for the first word in each name \(c 6, g 6\), or .* for the last word")
def code_in_front(folder: Path) -> None:
    save(folder, *(f"{'cg'[n % 2]}_{n:04}_{['left', 'right'][n % 4 // 2]}.png" for n in range(12)))


@layout(error=r"contains 12 images but no class folders\. Sort them into one folder per class")
def names_of_numbers(folder: Path) -> None:
    save(folder, *(f"{20 + n}_{n % 2}_{n % 3}_2017{n:04}.jpg" for n in range(12)))


@layout(error=r"'test', 'train' do not look like names of classes.*--label-from REGEX or --source folders")
def nothing_but_splits(folder: Path) -> None:
    save(folder, *(f"train/{n}.jpg" for n in range(6)), *(f"test/{n}.jpg" for n in range(6)))


LAYOUTS["splits_as_classes"] = Layout(nothing_but_splits, {"train": 6, "test": 6}, settings={"source": "folders"})


@layout(error=r"can be read as .*Pass --source folders or --source table")
def folders_and_a_table_that_differ(folder: Path) -> None:
    names = [f"{['cats', 'dogs'][n % 2]}/{n}.jpg" for n in range(12)]
    save(folder, *names)
    write_csv(
        folder / "labels.csv", [("image", "label"), *((name, "in" if n % 3 else "out") for n, name in enumerate(names))]
    )


LAYOUTS["folders_insisted_on"] = Layout(
    folders_and_a_table_that_differ, {"cats": 6, "dogs": 6}, settings={"source": "folders"}
)
LAYOUTS["table_insisted_on"] = Layout(
    folders_and_a_table_that_differ, {"in": 8, "out": 4}, settings={"source": "table"}
)


# images that are no files


@layout(classes={"0": 4, "1": 4, "2": 4}, says=("'test.csv' not read",))
def digits(folder: Path) -> None:
    header = [f"pixel{n}" for n in range(784)]
    rows = [[n % 3, *((n * k) % 256 for k in range(784))] for n in range(12)]
    write_csv(folder / "train.csv", [["label", *header], *rows])
    write_csv(folder / "test.csv", [header, rows[0][1:]])
    write_csv(folder / "sample_submission.csv", [("ImageId", "Label"), (1, 0)])


@layout(classes={"0": 6, "1": 6}, splits={"train": 8, "test": 4})
def letters_without_a_header(folder: Path) -> None:
    rows = [[n % 2, *((n * k) % 256 for k in range(784))] for n in range(12)]
    write_csv(folder / "letters-train.csv", rows[:8])
    write_csv(folder / "letters-test.csv", rows[8:])


@layout(classes={"0": 6, "3": 6}, splits={"train": 8, "valid": 2, "test": 2}, target="faces.csv")
def faces_as_text(folder: Path) -> None:
    usage = ["Training"] * 8 + ["PublicTest"] * 2 + ["PrivateTest"] * 2
    rows = [(3 * (n % 2), " ".join(str((n * k) % 256) for k in range(48 * 48)), usage[n]) for n in range(12)]
    write_csv(folder / "faces.csv", [("emotion", "pixels", "Usage"), *rows])


@layout(classes={"cat": 6, "dog": 6}, splits={"train": 8, "test": 4})
def images_in_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    features = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
    }
    for split, count in (("train", 8), ("test", 4)):
        cells = []
        for n in range(count):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (n * 20, count, 0)).save(content, "PNG")
            cells.append({"bytes": content.getvalue(), "path": f"{n}.png"})
        table = pyarrow.table({"image": cells, "label": [n % 2 for n in range(count)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        (folder / "data").mkdir(exist_ok=True)
        parquet.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")


@layout(classes={"1": 6, "2": 6}, splits={"train": 4, "valid": 4, "test": 4})
def flowers_in_matlab_files(folder: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    save(folder, *(f"jpg/image_{n:05}.jpg" for n in range(1, 13)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 6])})
    splits = {"trnid": np.arange(1, 5)[None], "valid": np.arange(5, 9)[None], "tstid": np.arange(9, 13)[None]}
    savemat(folder / "setid.mat", splits)


@layout(classes={"Audi": 4, "BMW": 4})
def cars_in_matlab_files(folder: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    save(folder, *(f"cars_train/{n:05}.jpg" for n in range(1, 9)), "cars_test/00001.jpg")
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    cars = np.array([(1, n % 2 + 1, f"{n:05}.jpg") for n in range(1, 9)], dtype=kinds)
    savemat(
        folder / "devkit/cars_train_annos.mat" if (folder / "devkit").mkdir() is None else "", {"annotations": cars}
    )
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})


@layout(error=r"contains no images\. It has the archive 'train\.zip'\. Pass it instead of the folder, or unpack it")
def archives_inside(folder: Path) -> None:
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("train/1.jpg", b"x")
    write_csv(folder / "labels.txt", [("a",)])


@layout(
    error=r"contains no images\. It has the videos '1\.mp4', '2\.MOV'\. Save frames of them as images, in one folder"
)
def videos(folder: Path) -> None:
    for name in ("run/2.MOV", "jump/1.mp4"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"x")


@layout(target="Walk.MP4", error=r"neither a table nor an archive\. Save frames of it as images, in one folder per")
def video(folder: Path) -> None:
    (folder / "Walk.MP4").write_bytes(b"x")


@layout(error=r"It has the array file 'images\.npz'\. Save each image as a PNG file")
def arrays(folder: Path) -> None:
    (folder / "images.npz").write_bytes(b"PK")


# settings

LAYOUTS["rare_tags_left_out"] = Layout(
    satellite_tags, {"clear": 8, "haze": 8, "primary": 16}, several=True, settings={"min_per_class": 5},
    says=("3 classes with fewer than 5 images left out of the labels",),
)  # fmt: skip
LAYOUTS["rare_tags_joined"] = Layout(
    satellite_tags, {"clear": 8, "haze": 8, "primary": 16, "rare": 8}, several=True,
    settings={"min_per_class": 5, "other": "rare"},
)  # fmt: skip
LAYOUTS["no_gaps_allowed"] = Layout(
    rows_with_gaps,
    target="table.csv",
    settings={"missing": "error"},
    error="1 of 40 rows of table.csv has no image in column 'image'",
)
LAYOUTS["unknown_encoding"] = Layout(
    western_encoding, target="labels.csv", settings={"encoding": "klingon"}, error="There is no encoding 'klingon'"
)
LAYOUTS["wrong_encoding"] = Layout(
    western_encoding, target="labels.csv", settings={"encoding": "utf-8"}, error=r"is not utf-8: .*another --encoding"
)
LAYOUTS["bins_of_texts"] = Layout(
    windows_paths,
    target="labels.tsv",
    settings={"bins": 3},
    error="--bins needs numbers, and 'label' .*'x', 'y'",
)
LAYOUTS["delimiter_that_does_not_occur"] = Layout(
    windows_paths, target="labels.tsv", settings={"label_delim": "|"},
    error=r"No label in 'label' of labels.tsv contains '\|'. Use another --label-delim, or leave it out",
)  # fmt: skip


@layout(classes={"Cat": 8, "Dog": 4}, several=True, settings={"task": "multilabel"})
def labels_of_an_image_in_several_rows(folder: Path) -> None:
    save(folder, *(f"{n}.jpg" for n in range(8)))
    rows = [(n, "Cat") for n in range(8)] + [(n, "Dog") for n in range(1, 8, 2)]
    write_csv(folder / "labels.csv", [("ImageID", "LabelName"), *rows])
