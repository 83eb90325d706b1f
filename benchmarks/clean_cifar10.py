"""How many wrong labels `baseline clean` finds on CIFAR-10, and what mending them is worth.

    python benchmarks/clean_cifar10.py LABELS --features cifar10-128.npz
    python benchmarks/clean_cifar10.py LABELS --features cifar10-128.npz --train 500

LABELS holds `cifar10n_train_labels.csv` (CIFAR-10N, Wei et al. 2022: labels that people gave the training images; 9 %
of `aggre` are wrong and 40 % of `worse`) and `cifar10_test_label_errors_cleanlab.csv` (Northcutt et al. 2021: test
labels that were called into question, with people's votes).

For each set of labels: AUROC of `label_quality` for "the label is wrong" among training images, precision and recall of
`is_label_issue`, and the accuracy on the test images of logistic regression on the same features, trained on the labels
as given, as fixed by `--accept`, without the suspected ones, and on the true ones. On the original labels: how many of
the confirmed wrong test labels are among the first. With `--train N` the quick preset is trained before and after fixes
on N images a class.
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

PIECE = 10_000
ACCEPT = (0.5, 0.7, 0.9)


def features_of(table: pd.DataFrame, size: int) -> np.ndarray:
    """As `baseline clean` makes them, in pieces that are kept in the cache one by one."""
    recipe = baseline.load_recipe("cifar10").changed(image_size=size, stages=(baseline.Stage("head", 1),), presets={})
    show = baseline.ConsoleProgress()
    table = table.assign(split=["valid", *["train"] * (len(table) - 1)])
    recipe, weights, _ = baseline.resolve(recipe, table, show)
    learn = baseline.learner(baseline.dataloaders(table, recipe, progress=show), recipe, weights=weights)
    pieces = [table.iloc[at : at + PIECE] for at in range(0, len(table), PIECE)]
    return np.concatenate([embeddings(learn, piece, recipe, ("flip",), show) for piece in pieces])


def name_of(paths: pd.Series) -> pd.Series:
    return paths.map(lambda path: "/".join(Path(path).with_suffix("").parts[-3:]))


def accuracy(inputs: np.ndarray, labels: pd.Series, rows: np.ndarray, test: np.ndarray, truth: pd.Series) -> float:
    model = LogisticRegression(C=1e-3, max_iter=200, tol=1e-3).fit(inputs[rows], labels[rows])
    return float((model.predict(inputs[test]) == truth[test]).mean())


def found_errors(issues: pd.DataFrame, truth: pd.Series) -> dict[str, Any]:
    wrong = issues["given_label"] != issues["path"].map(truth)
    hit = issues["is_label_issue"]
    right = issues["predicted_label"] == issues["path"].map(truth)
    told = {
        "wrong": float(wrong.mean()),
        "auroc": float(roc_auc_score(wrong, -issues["label_quality"])),
        "suspected": int(hit.sum()),
        "precision": float(wrong[hit].mean()),
        "recall": float((wrong & hit).sum() / wrong.sum()),
        "suggestion right": float(right[hit].mean()),
    }
    for least in ACCEPT:
        taken = hit & (issues["confidence"] >= least)
        told[f"accept {least}"] = {"images": int(taken.sum()), "suggestion right": float(right[taken].mean())}
    return told


def confirmed_among_first(issues: pd.DataFrame, listed: Path) -> dict[str, int]:
    """Confirmed: fewer than three of five people chose the given label."""
    errors = pd.read_csv(listed)
    votes = errors["mturk"].map(json.loads)
    confirmed = set(name_of(errors["path"][votes.map(lambda vote: vote["given"] < 3)]))
    test = issues[issues["split"] == "test"].sort_values("label_quality", kind="stable")
    hits = name_of(test["path"]).isin(confirmed).to_numpy()
    suspected = test["is_label_issue"].to_numpy()
    firsts = {f"first {count}": int(hits[:count].sum()) for count in (20, 100, 300)}
    return {"confirmed": len(confirmed), **firsts, "suspected": int(suspected.sum()), "hit": int(hits[suspected].sum())}


def main(
    labels: Path,
    features: Annotated[Path | None, typer.Option(help="Kept in this .npz, and taken from it.")] = None,
    size: int = 128,
    train: Annotated[int, typer.Option(help="Also trains the quick preset on so many images a class.")] = 0,
    sets: str = "aggre,worse,label",
) -> None:
    """Prints one JSON line a result."""
    table = baseline.image_table("cifar10", progress=baseline.ConsoleProgress())
    if features is not None and features.exists():
        values = np.load(features)["features"]
    else:
        values = features_of(table, size)
        if features is not None:
            np.savez(features, features=values)
    noisy = pd.read_csv(labels / "cifar10n_train_labels.csv")
    noisy = noisy.assign(name=name_of(noisy["path"])).set_index("name")
    truth, is_test = table["label"], (table["split"] == "test").to_numpy()
    by_path = table.set_index("path")["label"]
    parts = fold_numbers(truth, np.arange(len(table)), 5, 0)
    began = time.perf_counter()
    near = find_neighbors(values, parts)
    print(json.dumps({"neighbours, s": round(time.perf_counter() - began)}), flush=True)
    inputs = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
    for name in sets.split(","):
        given = truth if name == "label" else name_of(table["path"]).map(noisy[name]).fillna(truth)
        rows = table.assign(label=given)
        began = time.perf_counter()
        probabilities = predict_out_of_fold(values, given, parts, near)
        issues = find_label_issues(rows, probabilities, outlier_scores(near))
        told: dict[str, Any] = {"labels": name, "seconds": round(time.perf_counter() - began)}
        if name == "label":
            print(json.dumps(told | confirmed_among_first(issues, labels / "cifar10_test_label_errors_cleanlab.csv")))
            continue
        print(json.dumps(told | found_errors(issues[issues["split"] != "test"], by_path)), flush=True)
        by_row = issues.set_index("path").loc[table["path"]].reset_index()
        hit, learns = by_row["is_label_issue"].to_numpy(), ~is_test
        reached = {"as given": accuracy(inputs, given, learns, is_test, truth)}
        for least in ACCEPT:
            taken = hit & (by_row["confidence"] >= least).to_numpy()
            fixed = given.mask(taken, by_row["predicted_label"])
            reached[f"accept {least}"] = accuracy(inputs, fixed, learns, is_test, truth)
        reached["suspects dropped"] = accuracy(inputs, given, learns & ~hit, is_test, truth)
        reached["true labels"] = accuracy(inputs, truth, learns, is_test, truth)
        print(json.dumps({"labels": name, "test accuracy": reached}), flush=True)
        if train:
            run(rows, issues, train, name)


def run(rows: pd.DataFrame, issues: pd.DataFrame, train: int, name: str, least: float = 0.5) -> None:
    """The quick preset before and after fixes, both judged on the test images."""
    taken = issues[issues["is_label_issue"] & (issues["confidence"] >= least) & (issues["split"] != "test")]
    fixes = taken[["path", "given_label", "predicted_label"]].set_axis(["path", "label", "new_label"], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        fixes.to_csv(f"{folder}/fixes.csv", index=False)
        recipe = baseline.load_recipe("cifar10").changed(data="", images_per_class=train)
        found = compare_fixes(
            [f"{folder}/fixes.csv"], rows[["path", "label", "split"]], recipe, out=f"{folder}/run", preset="quick"
        )
        print(json.dumps({"labels": name, "quick": found.comparison.sentences}), flush=True)


if __name__ == "__main__":
    typer.run(main)
