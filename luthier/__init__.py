"""Luthier: from raw examples to a fine-tuned, proven, served language model.

The functions have the names of the commands, in the order of a run:

    plan      memory of a recipe, before a weight is loaded
    run       data, baseline, train, evaluate, compare, merge, report
    train     only data and training
    lr_find   the learning rate, by short runs
    sweep     many settings of one recipe
    evaluate  score a model on a recipe's tasks
    compare   paired tests between two score files or runs
    merge     adapter of a run into its base, checked
    rerun     repeat a run and compare every number

    >>> import luthier
    >>> result = luthier.run("recipe.yaml", overrides=["train.learning_rate=1e-4"])
    >>> result.comparison[0]["verdict"]

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from luthier.public import compare, evaluate, load_recipe, lr_find, merge, plan, rerun, run, sweep, train

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_recipe", "lr_find", "merge", "plan", "rerun", "run", "sweep", "train"]
