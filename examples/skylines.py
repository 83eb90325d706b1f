"""Compare a random split with a split by group, such as skylines by photographer or frames of one traffic sign.

python examples/skylines.py images.csv        # columns: path, label, and group (or photographer, patient, ...)
"""

import sys

import baseline

accuracy = {}
for split in ("random", "group"):
    done = baseline.make_baseline(sys.argv[1], "skylines", split=split)
    found = done.metrics["test"]["tta"]
    accuracy[split] = found["accuracy"]
    low, high = found["interval"]
    print(f"split {split}: accuracy {found['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
print(f"seen groups are worth {100 * (accuracy['random'] - accuracy['group']):.1f} points that new ones will not give")
print(f"picture: {done.folder / 'training.png'} (the rate falls where the valid loss does not)")
