"""`python -m lpfs`."""

from lpfs.cli import main

main()
