"""Train on a folder of images, and predict other images with the fastai Learner.

python examples/any_folder.py images/ mine.jpg another.jpg
"""

import sys

import baseline

result = baseline.make_baseline(sys.argv[1], preset="quick")
split, numbers = list(result.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%} (95% confidence interval {low:.1%} to {high:.1%})")

for image in sys.argv[2:]:
    name, number, probabilities = result.learner.predict(image)  # a plain fastai Learner
    print(f"{image}: {name}, {probabilities[number]:.1%}")
