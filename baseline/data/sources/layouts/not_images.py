"""Advice about folders whose images are in other files, which are not read: archives, arrays, records."""

from __future__ import annotations

from fnmatch import fnmatch

from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.errors import DataError, quoted_list

__all__ = ["NotImages"]


ADVICE = {
    ("*.zip", "*.tar", "*.tar.gz", "*.tgz"): ("archive", "Pass {one} instead of the folder, or unpack {all}"),
    ("*.7z", "*.rar"): ("archive", "Unpack {all} first"),
    ("*.npz", "*.npy", "*.h5", "*.hdf5", "*.pkl", "*.pickle", "*.mat", "*ubyte*", "data_batch*"):
        ("array file", "Save each image as a PNG file in a folder named after its class"),
    ("*.json",): ("JSON file", "Save each image as a PNG file, and give a table of their names and labels"),
    ("*.tfrecord*", "*.bson", "*.lmdb", "data.mdb", "*.rec"):
        ("record file", "Save each image as a file in a folder named after its class"),
    ("*.mp4", "*.mov", "*.avi", "*.mkv", "*.webm", "*.m4v", "*.mpg", "*.mpeg", "*.wmv"):
        ("video", "Save frames of {all} as images, in one folder per class"),
}  # fmt: skip
"""Kinds of files that hold images, and what to do with them."""


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
        for patterns, (kind, advice) in ADVICE.items():
            if place.is_file and any(fnmatch(place.path.name.lower(), pattern) for pattern in patterns):
                return f"{advice.format(one='it', all='it')}."
            if files := place.find(*patterns):
                names = quoted_list(sorted(path.name for path in files), 3)
                if len(files) == 1:
                    return f"It has the {kind} {names}. {advice.format(one='it', all='it')}."
                return f"It has the {kind}s {names}. {advice.format(one='one of them', all='them')}."
        return ""
