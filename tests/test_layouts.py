"""Layouts of public data sets are read as their users mean them, or refused in one line that names the way on."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import LAYOUTS, Layout

from baseline import Progress, load_images
from baseline.data.labels import explode_labels, is_multilabel
from baseline.data.table import summarize_source
from baseline.errors import DataError


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_its_user_means_it(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASELINE_HOME", str(tmp_path_factory.mktemp("cache")))
    layout: Layout = LAYOUTS[name]
    if "excel" in name:
        pytest.importorskip("openpyxl")
    layout.write(tmp_path)
    target = tmp_path / layout.target
    if layout.error:
        with pytest.raises(DataError, match=layout.error) as caught:
            load_images(target, progress=Progress(), preset="standard", **layout.settings)
        assert "\n" not in str(caught.value)
        return
    _, table = load_images(target, progress=Progress(), preset="standard", **layout.settings)
    summary = "\n".join(summarize_source(table))
    assert layout.classes is not None
    counts = explode_labels(table["label"]).value_counts().to_dict()
    counts = {label: count for label, count in counts.items() if label in layout.classes or "w_0" not in label}
    assert counts == layout.classes, summary
    splits = table["split"].fillna("none").value_counts().to_dict()
    assert splits == (layout.splits or {"none": len(table)}), summary
    assert is_multilabel(table["label"]) == layout.several, summary
    assert table["group"].nunique() == layout.groups, summary
    for text in layout.says:
        assert text in summary, summary
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in table["path"])
