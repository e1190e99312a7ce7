"""Graders as OpenAI's fine-tuning and evals APIs write them: JSON in, a reward out. Pure but for `python` and models.

shapes.py       the JSON of each kind, checked whole          template.py   {{ item.x }}, {{ sample.output_text }}
text.py         string_check, text_similarity                 formula.py    calculate_output of `multi`
sandbox.py      python, in a process of its own               models.py     score_model, label_model
grade.py        `validate_grader`, `run_grader`: what the API's `graders/validate` and `graders/run` answer
"""

from luthier.scoring.graders.grade import Grade, run_grader, validate_grader

__all__ = ["Grade", "run_grader", "validate_grader"]
