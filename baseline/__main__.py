"""`python -m baseline`: the command line."""

from baseline.cli.app import main

main()
