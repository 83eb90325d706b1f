"""`python -m baseline`: the command line."""

from .cli import main

main()
