# %% [markdown]
# # From the long form to a model of your own
#
# `make_baseline` is short for a few calls, and each of them can be replaced. This notebook keeps the images, the
# splits, the training loop and the evaluation, and replaces the network. Set `IMAGES` to a folder with one folder per
# class.

# %%
import os

import baseline
from baseline.vision.rng import seed_everything

recipe = baseline.load_recipe("default").with_preset("quick")
table = baseline.split(baseline.image_table(os.environ.get("IMAGES", "images")), recipe)
recipe, weights, reasons = baseline.resolve(recipe, table)
with seed_everything(0):
    dls = baseline.dataloaders(table, recipe)
axes = table.groupby(["label", "split"]).size().unstack().plot.barh(stacked=True)

# %% [markdown]
# First, the baseline to beat: a new head on a frozen, pretrained backbone.

# %%
frozen = recipe.changed(stages=(baseline.Stage("head", 10, "find"),))
with seed_everything(0):
    learn = baseline.learner(dls, frozen, weights=weights)
    history = baseline.train(learn, frozen)
to_beat = baseline.predict(learn, table)
history.epochs[["epoch", "lr", "train_loss", "valid_loss", "valid_accuracy"]]

# %% [markdown]
# Then a network of your own: any `nn.Sequential(body, head)` in a fastai Learner. The recipe still defines how it is
# trained: here all layers, at the learning rate found by the search, with the `flat_cos` schedule and BatchNorm in
# train mode.


# %%
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import params
from torch import nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


mine = recipe.changed(stages=(baseline.Stage("all", 12, "find", "train", optimizer="ranger", schedule="flat_cos"),))
with seed_everything(0):
    body = nn.Sequential(block(3, 32), block(32, 64), block(64, 128), block(128, 256))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, len(dls.vocab)))
    learn = Learner(
        dls,
        nn.Sequential(body, head),
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        splitter=lambda model: [params(model[0]), params(model[1])],
    )
    history = baseline.train(learn, mine)
own = baseline.predict(learn, table)
axes = history.epochs.plot("epoch", ["train_loss", "valid_loss"])

# %% [markdown]
# Both were evaluated on the same images, so that a paired test can compare them.

# %%
for name, predictions in (("head of a pretrained body", to_beat), ("network of my own", own)):
    split, numbers = list(baseline.evaluate(predictions).items())[-1]
    low, high = numbers["tta"]["interval"]
    accuracy = numbers["tta"]["accuracy"]
    print(f"{name}: {split} accuracy with TTA {accuracy:.1%} (95% confidence interval {low:.1%} to {high:.1%})")
difference = baseline.paired_test(to_beat, own)
low, high = difference["interval"]
print(f"difference {difference['difference']:+.1%} ({low:+.1%} to {high:+.1%}), p = {difference['p']:.2g}")
