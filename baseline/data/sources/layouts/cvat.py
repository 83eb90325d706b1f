"""The source "cvat": tags, or the classes of boxes, in the XML that CVAT exports, and the XML of PASCAL VOC."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place
from baseline.reading import check_memory_for, read_content

__all__ = ["Cvat", "PascalVoc"]


MAX_XML_BYTES, MAX_DEPTH = 10**9, 100
"""Maximum size of an XML file in bytes, and maximum depth of its elements."""

ELEMENT_BYTES, ATTRIBUTE_BYTES = 200, 150
"""Memory of an element, which has two tags or one, and of an attribute."""


class Cvat(AnnotationSource):
    """One XML file for all images."""

    name = "cvat"
    title = "a CVAT export"
    example = 'annotations.xml: <annotations><image name="1.jpg"><tag label="cat"/></image></annotations>'

    def matches(self, place: Place) -> Evidence | None:
        for path in place.find("annotations*.xml") or (place.find("*.xml") if place.is_file else []):
            root = place.load(path, parse_xml)
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
        if place.is_file or len(files) < 2 or not all(is_voc(place, path) for path in files[:3]):
            return None
        items = [item for path in files if (item := read_voc(place, path))]
        evidence = self.evidence(place, Annotated(items, files, place.folder, True))
        if evidence is None:
            return None
        return Evidence(0.7 * evidence.strength, "PASCAL VOC XML", f"{len(files):,} files", evidence.found)


def is_voc(place: Place, path: Path) -> bool:
    root = place.load(path, parse_xml)
    return root is not None and root.tag == "annotation" and root.find("object") is not None


def read_voc(place: Place, path: Path) -> Annotation | None:
    root = place.load(path, parse_xml)
    if root is None or root.tag != "annotation":
        return None
    names = dict.fromkeys(
        name.text.strip() for item in root.iter("object") if (name := item.find("name")) is not None and name.text
    )
    return Annotation(path.stem, tuple(names), split_from_name(path.parent.name))


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file without a document type.

    Raises:
        OSError: if it cannot be read, or its elements need more memory than is free.
        ValueError: if it is not valid, or its elements are nested deeper than `MAX_DEPTH`.
    """
    content = read_content(path, MAX_XML_BYTES)
    text = content.replace(b"\0", b"")  # UTF-16
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("it has a document type")
    check_memory_for(ELEMENT_BYTES * text.count(b"<") + ATTRIBUTE_BYTES * text.count(b"="), path)
    depth, root = 0, ElementTree.Element("")
    try:
        for event, root in ElementTree.iterparse(BytesIO(content), ("start", "end")):  # noqa: B007  # ends with the root
            depth += 1 if event == "start" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    except (ElementTree.ParseError, LookupError) as error:  # the latter for an unknown encoding
        raise ValueError(str(error)) from None
    return root
