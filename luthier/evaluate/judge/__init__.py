"""Another model judges the answers of two models to the same rows.

ask.py        one question to the judge and its answer     pairwise.py   which of two, in both orders; bias, agreement
rubric.py     a score of each answer                       run.py        over score files; `eval/judge.json`
"""
