"""Tens of photos, a new head, and then photos that it has not seen.

python examples/try_your_own.py photos/ mine.jpg another.jpg
"""

import sys

import baseline

photos, *mine = sys.argv[1:]
done = baseline.make_baseline(photos, "try_your_own", photos_per_class=20)
print(*baseline.sentences(list(done.metrics.values())[-1]), sep="\n")
if mine:
    print(done.predict(mine)[["path", "predicted", "confidence"]].to_string(index=False))
print(f"how sure it is, and how often right: {done.folder / 'reliability.png'}")
