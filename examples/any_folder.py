"""A baseline for a folder of photos, and what it says about photos of your own.

python examples/any_folder.py photos/ mine.jpg another.jpg
"""

import sys

import baseline

done = baseline.make_baseline(sys.argv[1], preset="quick")
split, numbers = list(done.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}; see {done.folder}")

for photo in sys.argv[2:]:
    name, number, probabilities = done.learner.predict(photo)  # a plain fastai Learner
    print(f"{photo}: {name}, {probabilities[number]:.1%}")
