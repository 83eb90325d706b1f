"""Classify alpacas with a small backbone at 160 px, and list the images with the lowest confidence.

python examples/alpaca.py images/        # two classes, one folder each
"""

import sys

import baseline

result = baseline.make_baseline(sys.argv[1], "alpaca")
print(f"backbone: {result.recipe.model.arch} ({result.manifest['reasons']['arch']})")
split, numbers = list(result.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%} (95% confidence interval {low:.1%} to {high:.1%})")
columns = ["path", "label", "predicted", "confidence"]
print(result.predictions.nsmallest(5, "confidence")[columns].to_string(index=False))
print(f"pictures: {result.folder / 'confusion.png'} and {result.folder / 'classes.png'}")
