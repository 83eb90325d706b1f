"""More imitations of the layouts of public data sets, in the form of `layouts`, which registers them all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from layouts import LAYOUTS, Layout, layout, save, write_csv, write_json, write_lines

AB = ["alder", "birch"]

# tables beside images


@layout(
    classes={"alder": 8, "birch": 8}, splits={"train": 12, "test": 4}, several=False, groups=4,
    says=("splits from test_list.txt and train_val_list.txt",),
)  # fmt: skip
def table_with_lists_of_splits(folder: Path) -> None:
    save(folder, *(f"images_00{n // 8 + 1}/images/{n:08}_000.png" for n in range(16)))
    rows = [(f"{n:08}_000.png", AB[n % 2], n // 4, 58 + n) for n in range(16)]
    write_csv(folder / "Data_Entry.csv", [("Image Index", "Finding Labels", "Patient ID", "Patient Age"), *rows])
    write_lines(folder / "train_val_list.txt", (row[0] for row in rows[:12]))
    write_lines(folder / "test_list.txt", (row[0] for row in rows[12:]))


@layout(classes={"alder": 6, "birch": 6}, groups=4, says=("labels from 'species'",))
def species_of_individuals(folder: Path) -> None:
    save(folder, *(f"train_images/{n:014x}.jpg" for n in range(12)), "test_images/ff.jpg")
    rows = [(f"{n:014x}.jpg", AB[n % 2], f"i{n % 4:04x}") for n in range(12)]
    write_csv(folder / "train.csv", [("image", "species", "individual_id"), *rows])
    write_csv(folder / "sample_submission.csv", [("image", "predictions"), ("ff.jpg", "i0000 i0001")])


@layout(classes={"0": 4, "1": 6}, says=("labels from 'Target'", "2 rows that list an image again"))
def boxes_in_several_rows(folder: Path) -> None:
    save(folder, *(f"stage_2_train_images/{n:036x}.png" for n in range(10)), "stage_2_test_images/ff.png")
    rows = [(f"{n:036x}", *((1.0, 2, 3, 4, 1) if n < 6 else ("", "", "", "", 0))) for n in [*range(10), 0, 1]]
    write_csv(folder / "stage_2_train_labels.csv", [("patientId", "x", "y", "width", "height", "Target"), *rows])


@layout(classes={"Fish": 6, "Flower": 4}, several=True, says=("'EncodedPixels' is not empty",))
def masks_by_image_and_class(folder: Path) -> None:
    save(folder, *(f"train_images/{n:07x}.jpg" for n in range(8)))
    rows = [
        (f"{n:07x}.jpg_{label}", "1 3 10 5" if (n % 4 > 0 if label == "Fish" else n % 2 == 0) else "")
        for n in range(8)
        for label in ("Fish", "Flower")
    ]
    write_csv(folder / "train.csv", [("Image_Label", "EncodedPixels"), *rows])


@layout(classes={"1": 4, "2": 5}, several=True, says=("1 row that lists an image again",))
def masks_of_several_classes(folder: Path) -> None:
    save(folder, *(f"train_images/{n:09x}.jpg" for n in range(8)))
    rows = [(f"{n:09x}.jpg", k, "1 3 10 5") for n in range(8) for k in ((1, 2) if n == 0 else (1 + n % 2,))]
    write_csv(folder / "train.csv", [("ImageId", "ClassId", "EncodedPixels"), *rows])


LAYOUTS["masks_of_several_classes_as_one"] = Layout(
    masks_of_several_classes, error=r"conflicting labels, first .*: '1', '2'\. .*--task multilabel",
    settings={"task": "single"},
)  # fmt: skip


@layout(error=r"in several files, 'train/0+_blue\.png', 'train/0+_green\.png'\? Join these")
def channels_in_files_of_their_own(folder: Path) -> None:
    colors = ("red", "green", "blue", "yellow")
    save(folder, *(f"train/{n:08}_{color}.png" for n in range(8) for color in colors))
    write_csv(folder / "train.csv", [("Id", "Target"), *((f"{n:08}", ["16 0", "7"][n % 2]) for n in range(8))])


@layout(
    error=r"'train_0'.*2 images have this name: 'train-jpg/train_0\.jpg', 'train-tif/train_0\.tif'.*Pass --image-dir"
)
def two_formats_of_all_images(folder: Path) -> None:
    save(folder, *(f"train-{kind}/train_{n}.{kind}" for n in range(8) for kind in ("jpg", "tif")))
    write_csv(folder / "train_v2.csv", [("image_name", "tags"), *((f"train_{n}", AB[n % 2]) for n in range(8))])


@layout(classes={"alder": 6, "birch": 6}, says=("labels from 'label'",))
def class_folders_and_a_table_of_more(folder: Path) -> None:
    save(folder, *(f"train_images/{AB[n % 2]}/{100 + n}.jpg" for n in range(12)), "test_images/200001.jpg")
    rows = [(f"{100 + n}.jpg", AB[n % 2], ["ADT45", "Ponni"][n // 2 % 2], 45 + n) for n in range(12)]
    write_csv(folder / "train.csv", [("image_id", "label", "variety", "age"), *rows])
    write_csv(folder / "sample_submission.csv", [("image_id", "label"), ("200001.jpg", "")])


@layout(classes={"Acer_Opalus": 5, "Tilia_Oliveri": 5}, says=("labels from 'species'",))
def table_with_many_features(folder: Path) -> None:
    save(folder, *(f"images/{n}.jpg" for n in range(1, 15)))
    features = [f"{part}{k}" for part in ("margin", "shape", "texture") for k in range(1, 65)]
    label = ["Acer_Opalus", "Tilia_Oliveri"]
    rows = [(n, label[n % 2], *(f"{(n * k % 97) / 1000:.6f}" for k in range(192))) for n in range(1, 11)]
    write_csv(folder / "train.csv", [("id", "species", *features), *rows])
    write_csv(folder / "test.csv", [("id", *features), *((n, *(0.1,) * 192) for n in range(11, 15))])


@layout(classes={"0": 6, "1": 6}, says=("labels from 'invasive'",))
def equal_names_in_train_and_test(folder: Path) -> None:
    save(folder, *(f"{split}/{n}.jpg" for split in ("train", "test") for n in range(1, 13)))
    write_csv(folder / "train_labels.csv", [("name", "invasive"), *((n, n % 2) for n in range(1, 13))])


@layout(classes={str(n): 4 for n in range(3)}, says=("labels from 'level'",))
def left_and_right_eyes(folder: Path) -> None:
    names = [f"{n // 2}_{['left', 'right'][n % 2]}" for n in range(12)]
    save(folder, *(f"train/{name}.jpeg" for name in names))
    write_csv(folder / "trainLabels.csv", [("image", "level"), *((name, n % 3) for n, name in enumerate(names))])


@layout(classes={"ALDER": 6, "BIRCH": 6}, splits={"train": 8, "valid": 2, "test": 2},
        says=("which would give the same classes",))  # fmt: skip
def table_of_all_splits_beside_folders(folder: Path) -> None:
    splits = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    rows = [(float(n % 2), f"{split}/{AB[n % 2].upper()}/{n:03}.jpg", AB[n % 2].upper(), split, "Betula")
            for n, split in enumerate(splits)]  # fmt: skip
    save(folder, *(row[1] for row in rows))
    write_csv(folder / "trees.csv", [("class id", "filepaths", "labels", "data set", "scientific name"), *rows])


@layout(error=r"styles\.csv has no column that looks like labels; its columns: 'id', 'gender', .*Pass --label-col")
def products_with_many_columns(folder: Path) -> None:
    save(folder, *(f"images/{n}.jpg" for n in range(1, 13)))
    rows = [(n, ["Men", "Women"][n % 2], ["Apparel", "Shoes"][n % 2], ["Shirt", "Boot", "Cap"][n % 3], 2010 + n % 3,
             ["Casual", "Sports"][n % 2], f"Thing {n}") for n in range(1, 13)]  # fmt: skip
    header = ("id", "gender", "masterCategory", "articleType", "year", "usage", "productDisplayName")
    write_csv(folder / "styles.csv", [header, *rows])


LAYOUTS["products_by_name_of_the_column"] = Layout(
    products_with_many_columns, {"Shirt": 4, "Boot": 4, "Cap": 4}, settings={"label_col": "articleType"}
)


@layout(classes={"NEV": 6, "BCC": 6}, groups=4, says=("labels from 'diagnostic'",))
def lesions_with_facts(folder: Path) -> None:
    save(folder, *(f"imgs_part_{1 + n // 6}/imgs_part_{1 + n // 6}/PAT_{n}_1.png" for n in range(12)))
    rows = [(f"PAT_{n // 3}", n, "False", 40 + n, "ARM", ["NEV", "BCC"][n % 2], f"PAT_{n}_1.png", str(n % 3 > 0))
            for n in range(12)]  # fmt: skip
    header = ("patient_id", "lesion_id", "smoke", "age", "region", "diagnostic", "img_id", "biopsed")
    write_csv(folder / "metadata.csv", [header, *rows])


@layout(classes={"alder": 6, "birch": 6}, splits={"train": 8, "valid": 4}, settings={"label_col": "race"},
        says=("labels from 'race'",))  # fmt: skip
def faces_with_two_tables(folder: Path) -> None:
    for split, count in (("train", 8), ("val", 4)):
        names = [f"{split}/{n}.jpg" for n in range(1, count + 1)]
        save(folder, *names)
        rows = [(name, "20-29", "Male", AB[n % 2], "True") for n, name in enumerate(names)]
        write_csv(folder / f"label_{split}.csv", [("file", "age", "gender", "race", "service_test"), *rows])


@layout(classes={"3": 6, "12": 6}, groups=3, says=("labels from 'class'", "groups from 'group'"))
def products_with_groups(folder: Path) -> None:
    save(folder, *(f"train/{n}.jpg" for n in range(12)))
    write_csv(folder / "train.csv", [("name", "class", "group"), *((f"{n}.jpg", [3, 12][n % 2], n // 4)
                                                                   for n in range(12))])  # fmt: skip


@layout(classes={"alder": 6, "birch": 6}, says=("labels from 'cultivar'",))
def cultivars(folder: Path) -> None:
    save(folder, *(f"train_images/2017-06-{n:02}__12-24-20-930.png" for n in range(12)), "test/999.png")
    rows = [(f"2017-06-{n:02}__12-24-20-930.png", AB[n % 2]) for n in range(12)]
    write_csv(folder / "train_cultivar_mapping.csv", [("image", "cultivar"), *rows])


# class folders


@layout(classes={"00000": 3, "00001": 3}, splits={"train": 6}, says=("--source table to read the table GT-final_test",))
def signs_with_a_table_in_each_class(folder: Path) -> None:
    header = ("Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
    for k in range(2):
        names = [f"{n:05}_00000.ppm" for n in range(3)]
        save(folder / f"Final_Training/Images/{k:05}", *names)
        rows = [(name, 29, 30, 5, 6, 24, 25, k) for name in names]
        write_csv(folder / f"Final_Training/Images/{k:05}/GT-{k:05}.csv", [header, *rows], delimiter=";")
    save(folder, *(f"Final_Test/Images/{n:05}.ppm" for n in range(2)))
    rows = [(f"{n:05}.ppm", 29, 30, 5, 6, 24, 25, n) for n in range(2)]
    write_csv(folder / "GT-final_test.csv", [header, *rows], delimiter=";")


@layout(classes={"BACKGROUND_Google": 4, "accordion": 4, "airplanes": 4})
def background_class_and_outlines(folder: Path) -> None:
    names = ["BACKGROUND_Google", "accordion", "airplanes"]
    save(folder, *(f"101_ObjectCategories/{names[n % 3]}/image_{n:04}.jpg" for n in range(12)))
    path = folder / "Annotations/accordion/annotation_0001.mat"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file")
    (folder / "Annotations/show_annotation.m").write_text("x")


@layout(classes={"alder": 4, "birch": 4}, splits={"train": 8}, says=("2 images in 'test' ignored",))
def unlabeled_test_beside_train(folder: Path) -> None:
    save(folder, *(f"train/{AB[n % 2]}/{n:x}.png" for n in range(8)), "test/0.png", "test/1.png")
    write_csv(folder / "sample_submission.csv", [("file", "species"), ("0.png", AB[0]), ("1.png", AB[0])])


@layout(classes={"ALB": 4, "NoF": 4}, splits={"train": 8}, says=("'test_stg1', 'test_stg2'",))
def two_stages_of_test_images(folder: Path) -> None:
    save(folder, *(f"train/{['ALB', 'NoF'][n % 2]}/img_{n:05}.jpg" for n in range(8)))
    save(folder, "test_stg1/img_1.jpg", "test_stg2/image_2.jpg")


@layout(error=r"contains 'amazon', 'dslr', 'webcam' with the same 4 class folders\. Pass one of them, or --label-from")
def the_same_classes_in_each_domain(folder: Path) -> None:
    for domain in ("amazon", "dslr", "webcam"):
        save(folder, *(f"{domain}/images/{['back', 'bike', 'cup', 'desk'][n % 4]}/frame_{n}.jpg" for n in range(8)))


LAYOUTS["domains_as_classes"] = Layout(
    the_same_classes_in_each_domain, {"amazon": 8, "dslr": 8, "webcam": 8}, settings={"source": "folders"}
)
LAYOUTS["classes_of_all_domains"] = Layout(
    the_same_classes_in_each_domain,
    {"back": 6, "bike": 6, "cup": 6, "desk": 6},
    settings={"label_from": "([^/]+)/[^/]+$"},
)


@layout(classes={"abbey": 4, "attic": 4, "bakery": 4}, says=("one folder per class",))
def classes_below_their_first_letters(folder: Path) -> None:
    names = ["a/abbey", "a/attic", "b/bakery"]
    save(folder, *(f"{names[n % 3]}/sun_{n:04}.jpg" for n in range(12)))


@layout(classes={"COVID": 4, "Normal": 4}, says=("8 images in 'COVID/masks', 'Normal/masks' ignored",))
def images_and_masks_in_each_class(folder: Path) -> None:
    for part in ("images", "masks"):
        save(folder, *(f"{['COVID', 'Normal'][n % 2]}/{part}/{n}.png" for n in range(8)))
    (folder / "README.md.txt").write_text("x")


@layout(classes={"benign": 4, "malignant": 4})
def kinds_and_magnifications_below_the_classes(folder: Path) -> None:
    kinds = ["benign/SOB/adenosis", "malignant/SOB/ductal"]
    save(folder, *(f"breast/{kinds[n % 2]}/SOB_14-{n // 4}/{40 * (1 + n // 2 % 2)}X/SOB_{n}.png" for n in range(8)))


# text files


@layout(classes={"Anorak": 6, "Blazer": 6}, splits={"train": 6, "valid": 3, "test": 3})
def clothes_with_text_tables(folder: Path) -> None:
    names = [f"img/Sheer_{n % 4}/img_{n:08}.jpg" for n in range(12)]
    save(folder, *names)
    rows = (f"{name}      {1 + n % 2}" for n, name in enumerate(names))
    write_lines(folder / "Anno/list_category_img.txt", ["12", "image_name  category_label", *rows])
    write_lines(
        folder / "Anno/list_category_cloth.txt", ["2", "category_name  category_type", "Anorak  1", "Blazer  1"]
    )
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    pairs = (f"{name}  {split}" for name, split in zip(names, splits, strict=True))
    write_lines(folder / "Eval/list_eval_partition.txt", ["12", "image_name  evaluation_status", *pairs])


@layout(classes={"cat": 6, "dog": 9}, splits={"train": 8, "valid": 4}, several=True)
def objects_with_sets(folder: Path) -> None:
    save(folder, *(f"JPEGImages/{n:06}.jpg" for n in range(12)))
    labels = [["cat", "dog"] if n % 4 == 0 else [["cat", "dog"][n % 2]] for n in range(12)]
    for n, names in enumerate(labels):
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        xml = f"<annotation><filename>{n:06}.jpg</filename>{objects}</annotation>"
        write_lines(folder / f"Annotations/{n:06}.xml", [xml])
    for split, part in (("train", range(8)), ("val", range(8, 12)), ("trainval", range(12))):
        write_lines(folder / f"ImageSets/Main/{split}.txt", (f"{n:06}" for n in part))
        for name in ("cat", "dog"):
            lines = (f"{n:06} {1 if name in labels[n] else -1:>2}" for n in part)
            write_lines(folder / f"ImageSets/Main/{name}_{split}.txt", lines)


@layout(classes={"707-320": 4, "A300 B4": 4, "DC-3": 4}, splits={"train": 6, "valid": 3, "test": 3})
def aircraft_by_variant_and_maker(folder: Path) -> None:
    save(folder, *(f"data/images/{n:07}.jpg" for n in range(12)))
    parts = (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 12)))
    for split, part in parts:
        for level, names in (("variant", ["707-320", "A300 B4", "DC-3"]), ("maker", ["Boeing", "Airbus"])):
            lines = (f"{n:07} {names[n % len(names)]}" for n in part)
            write_lines(folder / f"data/images_{level}_{split}.txt", lines)
    write_lines(folder / "data/variants.txt", ["707-320", "A300 B4"])
    write_lines(folder / "data/images_box.txt", (f"{n:07} 3 144 998 431" for n in range(12)))


@layout(classes={"Gala": 4, "Lime": 4, "Milk": 4}, splits={"train": 6, "valid": 3, "test": 3})
def groceries_with_two_levels(folder: Path) -> None:
    fine, parts = ["Fruit/Apple/Gala", "Fruit/Lime", "Packages/Milk"], [("train", 0, 6), ("val", 6, 9), ("test", 9, 12)]
    for split, first, end in parts:
        names = [f"{split}/{fine[n % 3]}/{fine[n % 3].rpartition('/')[2]}_{n:03}.jpg" for n in range(first, end)]
        save(folder / "dataset", *names)
        lines = (f"{name}, {n % 3}, {n % 3 // 2}" for n, name in zip(range(first, end), names, strict=True))
        write_lines(folder / f"dataset/{split}.txt", lines)


@layout(classes={"/a/airfield": 4, "/b/beach": 4}, splits={"train": 6, "valid": 2})
def places_with_numbered_categories(folder: Path) -> None:
    names = [["/a/airfield", "/b/beach"][n % 2] for n in range(6)]
    save(folder, *(f"data_256{name}/{n:08}.jpg" for n, name in enumerate(names)))
    save(folder, *(f"val_256/Places_val_{n:08}.jpg" for n in range(2)))
    write_lines(folder / "places_train_standard.txt", (f"{name}/{n:08}.jpg {n % 2}" for n, name in enumerate(names)))
    write_lines(folder / "places_val.txt", (f"Places_val_{n:08}.jpg {n % 2}" for n in range(2)))
    write_lines(folder / "categories_places.txt", ["/a/airfield 0", "/b/beach 1"])


# annotations of tools


@layout(classes={"alder": 6, "birch": 6})
def herbarium(folder: Path) -> None:
    names = [f"{n % 2:03}/{n:02}/{n:08}.jpg" for n in range(12)]
    save(folder / "train_images", *names)
    content = {
        "images": [{"image_id": f"{n:08}", "file_name": name, "license": 0} for n, name in enumerate(names)],
        "annotations": [{"genus_id": 1, "image_id": f"{n:08}", "category_id": n % 2} for n in range(12)],
        "categories": [{"category_id": k, "scientificName": AB[k], "family": "x"} for k in range(2)],
    }
    write_json(folder / "train_metadata.json", content)


@layout(classes={"62": 6, "66": 6}, several=True)
def fashion_with_lists_of_labels(folder: Path) -> None:
    save(folder, *(f"train/{n}.jpg" for n in range(1, 13)))
    labels = [["62"], ["66"], ["62", "66"], ["66"], [], ["62"]]
    content = {
        "info": {"year": 2018},
        "images": [{"url": f"https://example.org/{n}", "imageId": str(n)} for n in range(1, 13)],
        "annotations": [{"labelId": labels[n % 6], "imageId": str(n)} for n in range(1, 13) if labels[n % 6]],
    }
    write_json(folder / "train.json", content)


@layout(classes={"cat": 4, "dog": 6}, several=True, says=("the classes of its boxes",))
def labelme_files(folder: Path) -> None:
    for n in range(8):
        names = ["cat", "dog"] if n % 4 == 0 else [["cat", "dog"][n % 2]]
        save(folder, f"{n}.jpg")
        shapes = [{"label": name, "points": [[1, 2], [3, 4]], "shape_type": "polygon"} for name in names]
        write_json(folder / f"{n}.json", {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": f"{n}.jpg"})


@layout(classes={"cat": 4, "dog": 4})
def via_attributes(folder: Path) -> None:
    save(folder, *(f"images/{n}.jpg" for n in range(8)))
    content = {f"{n}.jpg{900 + n}": {"filename": f"{n}.jpg", "size": 900 + n, "regions": [],
                                     "file_attributes": {"kind": ["cat", "dog"][n % 2]}} for n in range(8)}  # fmt: skip
    write_json(folder / "via_export_json.json", content)


@layout(classes={"cat": 6, "dog": 9}, splits={"train": 8, "valid": 4}, several=True, says=("the classes of its boxes",))
def createml_in_each_split(folder: Path) -> None:
    for split, count in (("train", 8), ("valid", 4)):
        names = [f"{split}{n}.rf.{n:08x}.jpg" for n in range(count)]
        save(folder / split, *names)
        box = {"x": 3, "y": 3, "width": 2, "height": 2}
        write_json(folder / split / "_annotations.createml.json", [
            {"image": name, "annotations": [{"label": label, "coordinates": box} for label in
                                            (["cat", "dog"] if n % 4 == 0 else [["cat", "dog"][n % 2]])]}
            for n, name in enumerate(names)
        ])  # fmt: skip


@layout(classes={"cat": 6, "dog": 9}, splits={"train": 8, "valid": 4}, several=True)
def boxes_csv_in_each_split(folder: Path) -> None:
    for split, count in (("train", 8), ("valid", 4)):
        names = [f"{split}{n}_jpg.rf.{n:08x}.jpg" for n in range(count)]
        save(folder / split, *names)
        rows = [(name, 8, 8, label, 1, 1, 4, 4) for n, name in enumerate(names)
                for label in (["cat", "dog"] if n % 4 == 0 else [["cat", "dog"][n % 2]])]  # fmt: skip
        header = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
        write_csv(folder / split / "_annotations.csv", [header, *rows])


# not files of images


@layout(error=r"contains no images\. It has the array files 'test_32x32\.mat', 'train_32x32\.mat'\. Save each image")
def house_numbers_in_matlab_arrays(folder: Path) -> None:
    from scipy.io import savemat

    for split in ("train", "test"):
        images = np.zeros((32, 32, 3, 4), np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": np.array([[1], [10], [2], [1]], np.uint8)})


@layout(error=r"contains no images\. .*'train\.json'")
def radar_bands_in_json(folder: Path) -> None:
    rows = [{"id": f"{n:08x}", "band_1": [0.5] * 16, "band_2": [0.1] * 16, "is_iceberg": n % 2} for n in range(6)]
    (folder / "train.json").write_text(json.dumps(rows))


@layout(error=r"All images are of one class, 'UTK'\. .*--label-from REGEX")
def names_of_several_numbers(folder: Path) -> None:
    save(folder, *(f"UTK/{20 + n}_{n % 2}_{n % 3}_20170116{n:09}.jpg.chip.jpg" for n in range(12)))


LAYOUTS["one_of_several_numbers_by_a_pattern"] = Layout(
    names_of_several_numbers, {"0": 6, "1": 6}, settings={"label_from": r"\d+_(\d)_"}
)
