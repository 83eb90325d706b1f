"""The steps of `make_baseline` as separate calls, so that you can change any of them.

python examples/long_form.py images/
"""

import sys

import baseline
from baseline.vision.rng import seed_everything

recipe = baseline.load_recipe("default").with_preset("quick")
checked = baseline.audit(baseline.image_table(sys.argv[1]))
print(checked.findings)
table = baseline.split(checked.usable, recipe)
recipe, weights, reasons = baseline.resolve(recipe, table)
with seed_everything(recipe.seed):
    dls = baseline.dataloaders(table, recipe)
    learn = baseline.learner(dls, recipe, weights=weights)
    history = baseline.train(learn, recipe, baseline.ConsoleProgress())
    predictions = baseline.predict(learn, table, recipe.evaluation.tta)
print(history.epochs)
print(baseline.evaluate(predictions))

# learn is a complete fastai Learner: continue training with fastai
learn.freeze_to(-2)
learn.fit_one_cycle(1, 1e-4)
