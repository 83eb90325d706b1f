# %% [markdown]
# # Ants and bees
#
# PyTorch's transfer-learning tutorial fine-tunes a ResNet-18 on 245 images of ants and bees, in about 200 lines. The
# recipe `ants_bees` does the same in one call. Set `IMAGES` to the folder of the images, with `train` and `val` folders
# that hold one folder per class.

# %%
import os

import PIL.Image

import baseline

images = os.environ.get("IMAGES", "hymenoptera_data")
result = baseline.make_baseline(images, "ants_bees")

# %% [markdown]
# A result shows itself, with links to its report and files:

# %%
result

# %% [markdown]
# `result.metrics` has the numbers by split, with and without test-time augmentation (TTA):

# %%
split, numbers = list(result.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%} (95% confidence interval {low:.1%} to {high:.1%})")

# %% [markdown]
# Losses and learning rate by epoch:

# %%
PIL.Image.open(result.folder / "training.png")

# %% [markdown]
# The confusion matrix. `errors.png` in the same folder shows the most confident errors with Grad-CAM: some labels are
# wrong, and some images show neither an ant nor a bee. `report.html` has all of it.

# %%
PIL.Image.open(result.folder / "confusion.png")
