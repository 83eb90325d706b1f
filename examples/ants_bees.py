# %% [markdown]
# # Ants and bees
#
# PyTorch's transfer-learning tutorial fine-tunes a ResNet-18 on 245 images of ants and bees, in about 200 lines. The
# recipe `ants_bees` is that work in one call. Set `IMAGES` to the folder of the images: one folder for each class,
# below `train` and `val`.

# %%
import os

import PIL.Image

import baseline
from baseline.evaluation.explain import explain

images = os.environ.get("IMAGES", "hymenoptera_data")
done = baseline.make_baseline(images, "ants_bees")

# %% [markdown]
# The number, how far it can be trusted, and what it means:

# %%
split, numbers = list(done.metrics.items())[-1]
low, high = numbers["tta"]["interval"]
print(f"{split} accuracy {numbers['tta']['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}")
print(*explain(numbers), sep="\n")

# %% [markdown]
# Losses and the learning rate, epoch by epoch:

# %%
PIL.Image.open(done.folder / "training.png")

# %% [markdown]
# What is taken for what. `errors.png` beside it shows the images, the most confident errors first, and where the
# network looked: some labels are wrong, and some images show neither ant nor bee. All of it is in `report.html`.

# %%
PIL.Image.open(done.folder / "confusion.png")
