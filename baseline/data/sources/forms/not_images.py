"""Advice about folders that hold images in forms that are not read: archives inside, arrays, records of TensorFlow."""

from __future__ import annotations

from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.errors import DataError, quoted_list

__all__ = ["NotImages"]


ADVICE = {
    ("*.zip", "*.tar", "*.tar.gz", "*.tgz", "*.7z", "*.rar"): "archives: unpack them, or name one of them",
    ("*.npz", "*.npy", "*.h5", "*.hdf5", "*.pkl", "*.pickle", "*ubyte*", "data_batch*"):
        "arrays: save each image as a PNG file in a folder named after its class",
    ("*.tfrecord*", "*.bson", "*.lmdb", "data.mdb", "*.rec"): "records: save each image as a file in a folder named "
        "after its class",
}  # fmt: skip


class NotImages(Source):
    """Whatever holds images, but not as files."""

    name = "none"

    def matches(self, place: Place) -> Evidence | None:
        return None

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        raise DataError(f"{place.path} is not read. {self.hint(place)}")

    def hint(self, place: Place) -> str:
        """Return what the place holds instead of images, and what to do."""
        if place.images:
            return ""
        for patterns, advice in ADVICE.items():
            if files := place.find(*patterns):
                return f"It holds {quoted_list((path.name for path in files), 3)}, {advice}."
        return ""
