"""The source "cvat": tags, or the classes of boxes, in the XML that CVAT exports, and the XML of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place

__all__ = ["Cvat", "PascalVoc"]


class Cvat(AnnotationSource):
    """One XML file for all images."""

    name = "cvat"
    title = "a CVAT export"
    example = 'annotations.xml: <annotations><image name="1.jpg"><tag label="cat"/></image></annotations>'

    def matches(self, place: Place) -> Evidence | None:
        for path in place.find("annotations*.xml") or (place.find("*.xml") if place.is_file else []):
            root = parse_xml(path)
            if root is None or root.tag != "annotations":
                continue
            items, boxes = [], False
            for image in root.iter("image"):
                tags = [tag.get("label", "") for tag in image.findall("tag")]
                shapes = [shape.get("label", "") for shape in image if shape.tag != "tag" and shape.get("label")]
                boxes = boxes or (bool(shapes) and not tags)
                labels = tuple(dict.fromkeys(tags or shapes))
                items.append(Annotation(image.get("name", ""), labels, split_from_name(image.get("subset") or "")))
            if evidence := self.evidence(place, Annotated(items, [path], place.folder, boxes)):
                return evidence
        return None


class PascalVoc(AnnotationSource):
    """One XML file per image, with its objects."""

    name = "voc"
    title = "PASCAL VOC XML"
    example = "Annotations/1.xml: <annotation><filename>1.jpg</filename><object><name>cat</name></object></annotation>"

    def matches(self, place: Place) -> Evidence | None:
        files = place.find("*.xml")
        if place.is_file or len(files) < 2 or not all(is_voc(path) for path in files[:3]):
            return None
        items = [item for path in files if (item := read_voc(path))]
        evidence = self.evidence(place, Annotated(items, files, place.folder, True))
        if evidence is None:
            return None
        return Evidence(0.7 * evidence.strength, "PASCAL VOC XML", f"{len(files):,} files", evidence.found)


def is_voc(path: Path) -> bool:
    root = parse_xml(path)
    return root is not None and root.tag == "annotation" and root.find("object") is not None


def read_voc(path: Path) -> Annotation | None:
    root = parse_xml(path)
    if root is None or root.tag != "annotation":
        return None
    names = dict.fromkeys(
        name.text.strip() for item in root.iter("object") if (name := item.find("name")) is not None and name.text
    )
    return Annotation(path.stem, tuple(names), split_from_name(path.parent.name))


def parse_xml(path: Path) -> ElementTree.Element | None:
    """Return the root of an XML file without a document type; None if it is not valid."""
    try:
        if b"<!DOCTYPE" in path.read_bytes()[:4096] or b"<!ENTITY" in path.read_bytes()[:4096]:
            return None
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
