"""Measures how many of CIFAR-10's known train/test near-duplicates the audit finds.

    python benchmarks/audit_cifar10.py cifar10_train_test_duplicates.csv

The list is that of Barz and Denzler (Do We Train on Test Data?, 2020): one training image for each of 286 test images,
judged by eye as a near-duplicate (1: the same shot, perhaps processed) or very similar (2: another shot). It was
made from the nearest neighbors of a network's features and names one partner per test image, so a pair that is not on
the list may be true. Needs the columns test_path, train_path (`test/CLASS/NUMBER.*`) and judgment.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pandas as pd

import baseline


def main(duplicates: Path) -> None:
    truth = pd.read_csv(duplicates)
    table = baseline.image_table("cifar10", progress=baseline.ConsoleProgress())
    start = time.perf_counter()
    leaks = baseline.audit(table, progress=baseline.ConsoleProgress()).pairs.query("leak")
    seconds = time.perf_counter() - start
    ends = leaks[["path", "other"]].map(lambda path: "/".join(Path(path).with_suffix("").parts[-3:]))
    test = ends["path"].where(leaks["split"] == "test", ends["other"])
    train = ends["other"].where(leaks["split"] == "test", ends["path"])
    pairs_found = set(zip(test, train, strict=True))
    names = truth[["test_path", "train_path"]].map(lambda path: str(Path(path).with_suffix("")))
    for judgment, title in ((None, "the whole list"), (1, "judged near-duplicate"), (2, "judged very similar")):
        rows = names if judgment is None else names[truth["judgment"] == judgment]
        pairs = set(rows.itertuples(index=False, name=None))
        images = set(rows["test_path"]) & set(test)
        recall = len(images) / rows["test_path"].nunique()
        print(f"{title}: recall {recall:.3f} by test image, {len(pairs_found & pairs) / len(pairs):.3f} by pair")
    listed_images = set(test) & set(names["test_path"])
    precision = len(listed_images) / test.nunique()
    print(
        f"found: {len(pairs_found)} pairs of {test.nunique()} test images; {precision:.3f} of these images are listed"
    )
    print(f"audit: {seconds:.1f} s; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
