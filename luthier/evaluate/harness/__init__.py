"""lm-evaluation-harness: its tasks, filters and metrics; our model, template and generation.

library.py    imports the package, lists what that changes
load.py       a task of the recipe -> tasks of the harness
model.py      what the harness asks -> our generation and log-likelihoods, or an endpoint
run.py        its samples -> `TaskResult`
"""
