"""The report: one HTML file that opens from disk, needs no network and runs no script."""

from tokencredit.report.render import write_report

__all__ = ["write_report"]
