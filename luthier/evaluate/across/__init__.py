"""Several runs side by side: settings that differ, results, paired tests on the same rows, rows whose outcome changed.

`comparison.compare_runs` reads the run folders and computes all of it; `report.across` makes a page of its JSON.
"""

from luthier.evaluate.across.comparison import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
