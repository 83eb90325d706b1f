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
from baseline.evaluation.explain import explain

images = os.environ.get("IMAGES", "hymenoptera_data")
result = baseline.make_baseline(images, "ants_bees")

# %% [markdown]
# The accuracy, its 95% confidence interval, and what they mean:

# %%
split, numbers = list(result.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%}, 95% confidence interval {low:.1%} to {high:.1%}")
print(*explain(numbers), sep="\n")

# %% [markdown]
# Losses and learning rate by epoch:

# %%
PIL.Image.open(result.folder / "training.png")

# %% [markdown]
# The confusion matrix. `errors.png` in the same folder shows the most confident errors with Grad-CAM: some labels are
# wrong, and some images show neither an ant nor a bee. `report.html` has all of it.

# %%
PIL.Image.open(result.folder / "confusion.png")
