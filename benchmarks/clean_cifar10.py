"""Measures how many wrong labels `baseline clean` finds on CIFAR-10, and the effect of correcting them.

    python benchmarks/clean_cifar10.py LABELS --features cifar10-128.npz
    python benchmarks/clean_cifar10.py LABELS --features cifar10-128.npz --train 500

LABELS contains `cifar10n_train_labels.csv` (CIFAR-10N, Wei et al. 2022: human labels of the training images; 9%
of `aggre` are wrong and 40% of `worse`) and `cifar10_test_label_errors_cleanlab.csv` (Northcutt et al. 2021: test
labels that may be wrong, with votes of annotators).

For each set of labels: AUROC of `label_quality` for "the label is wrong" among training images, precision and recall of
`is_label_issue`, and the accuracy on the test images of logistic regression on the same features, trained on the labels
as given, as fixed by `--accept`, without the suspected ones, and on the true ones. On the original labels: how many of
the confirmed wrong test labels are among the first. With `--train N` the quick preset is trained before and after fixes
on N images per class.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import baseline
from baseline.data.split import fold_numbers
from baseline.evaluation.label_errors import find_label_issues
from baseline.experiments.before_after import compare_fixes
from baseline.experiments.label_review import find_neighbors, outlier_scores, predict_out_of_fold
from baseline.training.frozen import embeddings

CHUNK = 10_000
ACCEPT = (0.5, 0.7, 0.9)


def compute_features(table: pd.DataFrame, size: int) -> np.ndarray:
    """Return the features that `baseline clean` uses, computed and cached in chunks."""
    recipe = baseline.load_recipe("cifar10").changed(image_size=size, stages=(baseline.Stage("head", 1),), presets={})
    progress = baseline.ConsoleProgress()
    table = table.assign(split=["valid", *["train"] * (len(table) - 1)])
    recipe, weights, _ = baseline.resolve(recipe, table, progress)
    learn = baseline.learner(baseline.dataloaders(table, recipe, progress=progress), recipe, weights=weights)
    chunks = [table.iloc[at : at + CHUNK] for at in range(0, len(table), CHUNK)]
    return np.concatenate([embeddings(learn, chunk, recipe, ("flip",), progress) for chunk in chunks])


def image_names(paths: pd.Series) -> pd.Series:
    return paths.map(lambda path: "/".join(Path(path).with_suffix("").parts[-3:]))


def accuracy(inputs: np.ndarray, labels: pd.Series, rows: np.ndarray, test: np.ndarray, truth: pd.Series) -> float:
    model = LogisticRegression(C=1e-3, max_iter=200, tol=1e-3).fit(inputs[rows], labels[rows])
    return float((model.predict(inputs[test]) == truth[test]).mean())


def detection_metrics(issues: pd.DataFrame, truth: pd.Series) -> dict[str, Any]:
    wrong = issues["given_label"] != issues["path"].map(truth)
    hit = issues["is_label_issue"]
    right = issues["predicted_label"] == issues["path"].map(truth)
    row = {
        "wrong": float(wrong.mean()),
        "auroc": float(roc_auc_score(wrong, -issues["label_quality"])),
        "suspected": int(hit.sum()),
        "precision": float(wrong[hit].mean()),
        "recall": float((wrong & hit).sum() / wrong.sum()),
        "suggestion right": float(right[hit].mean()),
    }
    for minimum in ACCEPT:
        accepted = hit & (issues["confidence"] >= minimum)
        row[f"accept {minimum}"] = {"images": int(accepted.sum()), "suggestion right": float(right[accepted].mean())}
    return row


def confirmed_among_first(issues: pd.DataFrame, errors_file: Path) -> dict[str, int]:
    """Confirmed: fewer than three of five people chose the given label."""
    errors = pd.read_csv(errors_file)
    votes = errors["mturk"].map(json.loads)
    confirmed = set(image_names(errors["path"][votes.map(lambda vote: vote["given"] < 3)]))
    test = issues[issues["split"] == "test"].sort_values("label_quality", kind="stable")
    hits = image_names(test["path"]).isin(confirmed).to_numpy()
    suspected = test["is_label_issue"].to_numpy()
    firsts = {f"first {count}": int(hits[:count].sum()) for count in (20, 100, 300)}
    return {"confirmed": len(confirmed), **firsts, "suspected": int(suspected.sum()), "hit": int(hits[suspected].sum())}


def main(
    labels: Path,
    features: Annotated[
        Path | None, typer.Option(help="File (.npz) to store the features in, or load them from.")
    ] = None,
    size: int = 128,
    train: Annotated[int, typer.Option(help="Also train the quick preset on this many images per class.")] = 0,
    sets: str = "aggre,worse,label",
) -> None:
    """Print one line of JSON per result."""
    table = baseline.image_table("cifar10", progress=baseline.ConsoleProgress())
    if features is not None and features.exists():
        values = np.load(features)["features"]
    else:
        values = compute_features(table, size)
        if features is not None:
            np.savez(features, features=values)
    noisy = pd.read_csv(labels / "cifar10n_train_labels.csv")
    noisy = noisy.assign(name=image_names(noisy["path"])).set_index("name")
    truth, is_test = table["label"], (table["split"] == "test").to_numpy()
    by_path = table.set_index("path")["label"]
    folds = fold_numbers(truth, np.arange(len(table)), 5, 0)
    start = time.perf_counter()
    neighbors = find_neighbors(values, folds)
    print(json.dumps({"neighbors, s": round(time.perf_counter() - start)}), flush=True)
    inputs = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
    for name in sets.split(","):
        labels_given = truth if name == "label" else image_names(table["path"]).map(noisy[name]).fillna(truth)
        rows = table.assign(label=labels_given)
        start = time.perf_counter()
        probabilities = predict_out_of_fold(values, labels_given, folds, neighbors)
        issues = find_label_issues(rows, probabilities, outlier_scores(neighbors))
        row: dict[str, Any] = {"labels": name, "seconds": round(time.perf_counter() - start)}
        if name == "label":
            print(json.dumps(row | confirmed_among_first(issues, labels / "cifar10_test_label_errors_cleanlab.csv")))
            continue
        print(json.dumps(row | detection_metrics(issues[issues["split"] != "test"], by_path)), flush=True)
        by_row = issues.set_index("path").loc[table["path"]].reset_index()
        hit, is_train = by_row["is_label_issue"].to_numpy(), ~is_test
        accuracies = {"as given": accuracy(inputs, labels_given, is_train, is_test, truth)}
        for minimum in ACCEPT:
            accepted = hit & (by_row["confidence"] >= minimum).to_numpy()
            fixed = labels_given.mask(accepted, by_row["predicted_label"])
            accuracies[f"accept {minimum}"] = accuracy(inputs, fixed, is_train, is_test, truth)
        accuracies["suspects dropped"] = accuracy(inputs, labels_given, is_train & ~hit, is_test, truth)
        accuracies["true labels"] = accuracy(inputs, truth, is_train, is_test, truth)
        print(json.dumps({"labels": name, "test accuracy": accuracies}), flush=True)
        if train:
            run(rows, issues, train, name)


def run(rows: pd.DataFrame, issues: pd.DataFrame, train: int, name: str, minimum: float = 0.5) -> None:
    """Train the quick preset before and after fixes, both evaluated on the test images."""
    accepted = issues[issues["is_label_issue"] & (issues["confidence"] >= minimum) & (issues["split"] != "test")]
    fixes = accepted[["path", "given_label", "predicted_label"]].set_axis(["path", "label", "new_label"], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        fixes.to_csv(f"{folder}/fixes.csv", index=False)
        recipe = baseline.load_recipe("cifar10").changed(data="", images_per_class=train)
        result = compare_fixes(
            [f"{folder}/fixes.csv"], rows[["path", "label", "split"]], recipe, out=f"{folder}/run", preset="quick"
        )
        print(json.dumps({"labels": name, "quick": result.comparison.sentences}), flush=True)


if __name__ == "__main__":
    typer.run(main)
