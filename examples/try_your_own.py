"""Train on 20 images per class, and predict images of your own.

python examples/try_your_own.py images/ mine.jpg another.jpg
"""

import sys

import baseline
from baseline.evaluation.explain import explain

images, *mine = sys.argv[1:]
result = baseline.make_baseline(images, "try_your_own", images_per_class=20)
print(*explain(list(result.metrics.values())[-1]), sep="\n")
if mine:
    print(result.predict(mine)[["path", "predicted", "confidence"]].to_string(index=False))
print(f"confusion matrix: {result.folder / 'confusion.png'}")
