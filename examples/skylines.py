"""Compare a random split with a split by group, such as skylines by photographer or frames of one traffic sign.

python examples/skylines.py images.csv        # columns: path, label, and group (or photographer, patient, ...)
"""

import sys

import baseline

accuracy = {}
for split in ("random", "group"):
    result = baseline.make_baseline(sys.argv[1], "skylines", split=split)
    scores = result.metrics["test"]["tta"]
    accuracy[split] = scores["accuracy"]
    low, high = scores["interval"]
    print(f"split {split}: accuracy {scores['accuracy']:.1%}, 95% confidence interval {low:.1%} to {high:.1%}")
points = 100 * (accuracy["random"] - accuracy["group"])
print(f"groups on both sides of the random split inflate accuracy by {points:.1f} points")
print(f"picture: {result.folder / 'training.png'} (the learning rate is lowered when the validation loss stalls)")
