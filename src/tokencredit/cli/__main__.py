"""`python -m tokencredit.cli`, for launchers that start modules."""

from tokencredit.cli import main

main()
