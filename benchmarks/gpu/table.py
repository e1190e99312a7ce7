"""One line of text for one result: ours, a peer's, or a check's. Only the standard library."""

from __future__ import annotations

from typing import Any

HEADER = (
    f"{'peer':17}{'model':9}{'method':7}{'tokens':>7}{'doc':>6} {'setting':24}{'tok/s':>9}{'median':>9}{'sup/s':>9}"
    f"{'ms':>9}{'plan':>9}{'GiB':>7}{'plan':>7}{'MFU':>7}{'first':>7}"
)


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    tokens = result.get("tokens") or result.get("seq", 0) * result.get("bs", 0)
    plan: dict[str, Any] = result.get("predicted", {})
    memory, first = result.get("peak_gib", result.get("mem_gb")), result.get("first_step_s")
    parts = [
        f"{str(result.get('peer', '?'))[:16]:17}{str(result.get('model', '-'))[:8]:9}{result.get('method', '-')!s:7}",
        f"{tokens:>7}{result.get('max_doc', result.get('seq', '-')):>6} {_setting(result)[:23]:24}",
        *(f"{_number(result.get(key)):>9}" for key in ("tok_s", "tok_s_median", "sup_tok_s")),
        f"{_number(result.get('ms_step'), 1):>9}{_number(plan.get('ms_step'), 1):>9}{_number(memory, 1):>7}",
        f"{_number(plan.get('peak_gib'), 1):>7}{_number(result.get('mfu'), 3):>7}",
        f"{_number(first, 1):>7}",
    ]
    verdict = f"  {str(result['verdict'])[:120]}" if "verdict" in result else ""
    problem = result.get("error") or result.get("late")
    trouble = f"  ERROR {str(problem)[:160]}".replace("\n", " ") if problem else ""
    if "model" not in result:
        trouble += f" in: {result.get('line', '')[:110]}"
    return "".join(parts) + verdict + trouble


def _setting(result: dict[str, Any]) -> str:
    """What a row was run with, in a few letters."""
    if "recompute" not in result:
        return " ".join(str(result[key]) for key in ("ckpt", "attn", "opt") if result.get(key))
    layers = f"{result['recompute_layers']}" if result.get("recompute_layers") else ""
    words = [result["recompute"] + layers, "" if result["quantization"] == "none" else result["quantization"]]
    words.append("dequantized" if result.get("dequantize_base") else "")
    words.append("" if result["optim"] == "adamw_torch_fused" else result["optim"])
    words.append(result.get("label", ""))
    return " ".join(word for word in words if word)


def _number(value: Any, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"
