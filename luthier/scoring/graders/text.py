"""`string_check` and `text_similarity`: two texts, one number.

fuzzy_match        rapidfuzz `fuzz.ratio`: 1 - indel distance / both lengths
bleu               sacrebleu `sentence_score`, effective order
gleu               nltk `sentence_gleu` (Google BLEU) over words
meteor             nltk `single_meteor_score`; needs WordNet on this machine
rouge_1..5, _l     rouge-score, F measure, no stemmer

All are 0 to 1.

OpenAI names the metrics, not every setting behind them: its own figures may differ a little.
"""

from __future__ import annotations

import importlib.util

from luthier.runtime.errors import EnvironmentProblem
from luthier.scoring.graders.shapes import StringCheckGrader, TextSimilarityGrader

__all__ = ["INSTALL", "require_metric", "similarity", "string_check"]

INSTALL = "pip install 'luthier[graders]'"
_NEEDS = {"fuzzy_match": "rapidfuzz", "bleu": "sacrebleu", "gleu": "nltk", "meteor": "nltk"}


def string_check(grader: StringCheckGrader, text: str, reference: str) -> float:
    """1 when the check holds, else 0."""
    holds = {
        "eq": text == reference,
        "ne": text != reference,
        "like": reference in text,
        "ilike": reference.casefold() in text.casefold(),
    }[grader.operation]
    return float(holds)


def require_metric(metric: str) -> None:
    """Everything a metric needs is installed.

    Raises:
        EnvironmentProblem: it is not.
    """
    package = _NEEDS.get(metric, "rouge_score")
    if importlib.util.find_spec(package) is None:
        message = f"text_similarity {metric} needs the package {package.replace('_', '-')}"
        raise EnvironmentProblem(code="E553", message=message, hint=INSTALL)
    if metric == "meteor":
        from nltk.corpus import wordnet

        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise EnvironmentProblem(
                code="E553", message="text_similarity meteor needs WordNet, which is not on this machine",
                hint="python -m nltk.downloader wordnet",
            ) from error  # fmt: skip


def similarity(grader: TextSimilarityGrader, text: str, reference: str) -> float:
    """Similarity of text and reference, 0 to 1.

    Raises:
        EnvironmentProblem: a package of the metric is missing.
    """
    metric = grader.evaluation_metric
    require_metric(metric)
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz

        return float(fuzz.ratio(text, reference)) / 100
    if metric == "bleu":
        from sacrebleu.metrics import BLEU

        return float(BLEU(effective_order=True).sentence_score(text, [reference]).score) / 100
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return float(sentence_gleu([reference.split()], text.split())) if text.split() else 0.0
    if metric == "meteor":
        from nltk.translate.meteor_score import single_meteor_score

        return float(single_meteor_score(reference.split(), text.split()))
    return _rouge(metric, text, reference)


def _rouge(metric: str, text: str, reference: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    name = "rougeL" if metric == "rouge_l" else f"rouge{metric.removeprefix('rouge_')}"
    return float(RougeScorer([name], use_stemmer=False).score(reference, text)[name].fmeasure)
