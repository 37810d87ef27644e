"""One self-contained page for what a run found, readable by people."""

from tokencredit.report.write import write_report

__all__ = ["write_report"]
