"""Tables, plots and pages of finished runs."""

from dirotq.report.published import load_published
from dirotq.report.runs import find_runs
from dirotq.report.tables import results_table

__all__ = ["find_runs", "load_published", "results_table"]
