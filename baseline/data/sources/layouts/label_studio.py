"""The source "labelstudio": tasks with choices as Label Studio exports them in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource
from baseline.data.sources.folders import has_image_name
from baseline.data.sources.place import Evidence, Place, foreign_content

__all__ = ["LabelStudio"]


class LabelStudio(AnnotationSource):
    """Tasks with annotations in JSON."""

    name = "labelstudio"
    title = "a Label Studio export"
    example = "project.json: [{data: {image: ...}, annotations: [{result: [{value: {choices: [cat]}}]}]}]"

    def matches(self, place: Place) -> Evidence | None:
        for path in place.json_files:
            if is_label_studio(tasks := place.json(path)):
                items = [item for task in tasks if (item := read_task(task))]
                with foreign_content():
                    boxes = any("labels" in key for task in tasks for value in values_of(task) for key in value)
                annotated = Annotated(items, [path], place.folder, boxes)
                if evidence := self.evidence(place, annotated):
                    return evidence
        return None


@foreign_content()
def is_label_studio(tasks: Any) -> bool:
    return (
        isinstance(tasks, list)
        and bool(tasks)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("data"), dict)
            and isinstance(task.get("annotations", task.get("completions")), list)
            for task in tasks
        )
    )


@foreign_content()
def read_task(task: dict[str, Any]) -> Annotation | None:
    """Return the image of a task and its choices; None if it has no image."""
    texts = [value for value in task["data"].values() if isinstance(value, str)]
    image = next((text for text in texts if has_image_name(text.partition("?")[0])), None)
    image = image or next((text for text in texts if "?d=" in text), texts[0] if len(texts) == 1 else None)
    if image is None:
        return None
    labels: list[str] = []
    for value in values_of(task):
        for key, names in value.items():
            if key in ("choices", "taxonomy") or key.endswith("labels"):
                labels += [str(name[-1] if isinstance(name, list) else name) for name in names]
    return Annotation(image, tuple(dict.fromkeys(labels)))


def values_of(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the values of the first annotation of a task that was not canceled."""
    for annotation in task.get("annotations", task.get("completions")) or []:
        if not annotation.get("was_cancelled"):
            yield from (item["value"] for item in annotation.get("result", []) if isinstance(item.get("value"), dict))
            return
