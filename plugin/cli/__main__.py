"""`python -m ropebend.cli` is the `ropebend` command."""

from ropebend.cli import main

main()
