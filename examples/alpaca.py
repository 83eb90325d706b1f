"""Classify alpacas with a small backbone at 160 px, and list the images with the lowest confidence.

python examples/alpaca.py images/        # two classes, one folder each
"""

import sys

import baseline

done = baseline.make_baseline(sys.argv[1], "alpaca")
print(f"body: {done.recipe.model.arch} ({done.manifest['reasons']['arch']})")
split, numbers = list(done.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
print(done.predictions.nsmallest(5, "confidence")[["path", "label", "predicted", "confidence"]].to_string(index=False))
print(f"pictures: {done.folder / 'confusion.png'} and {done.folder / 'reliability.png'}")
