"""Paired comparisons and the table of `methods.py`."""

from __future__ import annotations

from typing import Any

from luthier.evaluate.stats import paired_means, paired_proportions

CONFIDENCE = 0.95


def against(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Paired tests on the same test rows: McNemar for answers, permutation for losses; differences one - other."""
    answers = paired_proportions(other["right"], one["right"], confidence=CONFIDENCE)
    weights = [weight for _, weight in one["row_losses"]]
    losses = [[nll for nll, _ in side["row_losses"]] for side in (other, one)]
    loss = paired_means(*losses, weights, confidence=CONFIDENCE)
    return {"accuracy_difference": answers.delta, "accuracy_p": answers.p_value,
            "loss_difference": loss.delta, "loss_p": loss.p_value}  # fmt: skip


def table(rows: list[dict[str, Any]], base: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| method | rate | trained | validation loss | test loss | right | strict | GiB | tokens/s | p, loss "
        "| p, right |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| untouched | | | | {base['test_loss']:.4f} | {base['accuracy']:.1%} | {base['strict'] or 0:.1%} | | | | |",
    ]
    for row in rows:
        edge = "*" if row["rate_at_end_of_grid"] else ""
        tests = row.get("against_random_30_seed0", {})
        peak = f"{row['peak_gib']:.2f}" if row["peak_gib"] else ""
        right = f"{row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]"
        lines.append(
            f"| {row['method']} | {row['learning_rate']:g}{edge} | {row['trained_percent']:.1f}% "
            f"| {row['validation_loss']:.4f} | {row['test_loss']:.4f} "
            f"| {right} | {row['strict'] or 0:.1%} "
            f"| {peak} | {row['tokens_per_second']:,.0f} | {tests.get('loss_p', float('nan')):.2g} "
            f"| {tests.get('accuracy_p', float('nan')):.2g} |"
        )
    notes = (
        "p: paired, against random_30_seed0, not corrected for the number of tests. *: at the end of its grid of rates."
    )
    return "\n".join([*lines, "", notes])
