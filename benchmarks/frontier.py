"""Accuracy against seconds: the presets of baseline beside other libraries, on several sets of images.

    python benchmarks/frontier.py flowers/ signs/ cifar10 --seeds 3 --out frontier.jsonl --picture frontier.png

Every peer of `benchmarks/peers.py` runs on each set, in a process of its own and in turn, on the same splits; runs that
the file already has are not repeated. Prints medians over the seeds, and says for each of baseline's presets whether a
peer is both quicker and more accurate.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

PEERS = (
    "baseline-instant", "baseline-quick", "baseline-standard", "baseline-best", "sklearn", "fastai-fine-tune", "fastai",
    "timm",
)  # fmt: skip

SIDES = {
    "instant": ((-6, 0), "right", "center"), "quick": ((-5, 4), "right", "bottom"),
    "standard": ((4, -5), "left", "top"), "sklearn": ((0, -6), "center", "top"), "timm": ((0, -6), "center", "top"),
    "lightly-train": ((0, -6), "center", "top"), "fastai-fine-tune": ((4, -5), "left", "top"),
}  # fmt: skip
"""Where a name is written that would cover another one in the picture: offset in points and alignment."""


def run_peers(
    data: str, peers: str, seeds: int, size: int, images_per_class: int, out: Path, environments: str
) -> None:
    """Run on a set those peers that the file lacks, and add them to it."""
    name = f"{Path(data).stem}{f'-{images_per_class}' if images_per_class else ''}"
    part = out.with_name(f"{out.stem}-{name}.jsonl")
    options = [f"--images-per-class={images_per_class}", f"--image-size={size}", f"--seeds={seeds}", f"--peers={peers}"]
    options.append(f"--environments={environments}")
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), data, *options, "--out", str(part)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = [json.loads(line) | {"set": name} for line in part.read_text().splitlines()]
    lines = out.read_text().splitlines() if out.exists() else []
    others = [line for line in lines if json.loads(line)["set"] != name]
    out.write_text("".join(f"{line}\n" for line in [*others, *map(json.dumps, runs)]))


def medians(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Return a row per set and peer: median accuracy, with TTA where the peer has it, and median seconds."""
    rows = []
    for name, peer in dict.fromkeys((run["set"], run["peer"]) for run in runs):
        group = [run for run in runs if (run["set"], run["peer"]) == (name, peer)]
        accuracies = [run["test"].get("tta", run["test"]["plain"]) for run in group]
        rows.append({
            "set": name, "peer": peer, "seeds": len(group), "accuracy": statistics.median(accuracies),
            "lowest": min(accuracies), "highest": max(accuracies),
            "seconds": statistics.median(run["seconds"] for run in group),
        })  # fmt: skip
    return pd.DataFrame(rows)


def dominated(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each preset on each set to which a peer is superior in both."""
    sentences = []
    for _, rows in table.groupby("set"):
        is_ours = rows["peer"].str.startswith("baseline-")
        for ours in rows[is_ours].itertuples():
            better = rows[~is_ours & (rows["seconds"] < ours.seconds) & (rows["accuracy"] > ours.accuracy)]
            verdict = f"quicker and more accurate than {ours.peer}"
            sentences += [f"{ours.set}: {peer} is {verdict}" for peer in better["peer"]]
    return sentences


def describe_set(name: str) -> str:
    """Return the title of a set.

    >>> describe_set("cifar10-250"), describe_set("flowers")
    ('cifar10, 250 per class', 'flowers')
    """
    folder, _, count = name.rpartition("-")
    return f"{folder}, {count} per class" if count.isdecimal() and folder else name


def draw(table: pd.DataFrame, picture: Path) -> None:
    """Draw accuracy against seconds, a panel per set."""
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(table["set"]))
    figure, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.8), squeeze=False)
    for axis, title in zip(axes[0], sets, strict=True):
        rows = table[table["set"] == title]
        is_ours = rows["peer"].str.startswith("baseline-")
        ours = rows[is_ours].sort_values("seconds")
        axis.plot(ours["seconds"], 100 * ours["accuracy"], "o-", color="tab:blue", label="baseline")
        axis.plot(rows[~is_ours]["seconds"], 100 * rows[~is_ours]["accuracy"], "s", color="tab:gray", label="others")
        for row in rows.itertuples():
            name, at = row.peer.removeprefix("baseline-"), (row.seconds, 100 * row.accuracy)
            offset, ha, va = SIDES.get(name, ((6, 0), "left", "center"))
            axis.annotate(name, at, xytext=offset, textcoords="offset points", ha=ha, va=va, fontsize=8)
        axis.set(title=describe_set(title), xscale="log", xlabel="seconds, whole command", ylabel="test accuracy, %")
        axis.margins(x=0.3, y=0.15)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(picture, dpi=120)


def main(
    sets: Annotated[list[str], typer.Argument(help="Folders or names of datasets; NAME:250 takes 250 per class.")],
    seeds: int = 3,
    size: Annotated[int, typer.Option(help="Image size of all peers; presets have their own.")] = 128,
    peers: Annotated[str, typer.Option(help="Names separated by commas.")] = ",".join(PEERS),
    out: Annotated[Path, typer.Option(help="JSON lines file with all runs.")] = Path("frontier.jsonl"),
    environments: Annotated[str, typer.Option(help="As in peers.py, for autogluon and lightly-train.")] = "",
    picture: Annotated[Path | None, typer.Option(help="PNG file to draw.")] = None,
) -> None:
    """Run the peers on each set and print the medians."""
    for data in sets:
        folder, _, count = data.rpartition(":") if data.rpartition(":")[2].isdecimal() else (data, "", "0")
        run_peers(folder, peers, seeds, size, int(count), out, environments)
    table = medians([json.loads(line) for line in out.read_text().splitlines()])
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print("\n".join(dominated(table)) or "No peer is both quicker and more accurate than one of baseline's presets.")
    if picture:
        draw(table, picture)


if __name__ == "__main__":
    typer.run(main)
