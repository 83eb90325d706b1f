"""Classify trash as plastic or not, and compare a frozen backbone with a fine-tuned one.

python examples/debris.py images/        # one folder per class, one of them named plastic
"""

import sys

import baseline

images = sys.argv[1]
tuned = baseline.make_baseline(images, "debris")
frozen = baseline.make_baseline(images, "debris", stages=[baseline.Stage("head", 10, "find")])
for name, result in (("frozen", frozen), ("fine-tuned", tuned)):
    scores = result.metrics["test"]["tta"]
    low, high = scores["interval"]
    print(f"{name}: accuracy {scores['accuracy']:.1%}, 95% confidence interval {low:.1%} to {high:.1%}")
    plastic = scores["classes"]["plastic"]
    print(f"  recall of plastic {plastic['recall']:.0%}, precision {plastic['precision']:.0%}")
test = baseline.paired_test(frozen.predictions, tuned.predictions)
verdict = "significant" if test["beyond_noise"] else "not significant"
print(f"difference {test['difference']:+.1%}, {verdict} (p = {test['p']:.3f})")
print(f"pictures: {tuned.folder / 'confusion.png'} and {tuned.folder / 'errors.png'}")
