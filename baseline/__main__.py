"""`python -m baseline`: the command line."""

from baseline.cli.app import run_process

run_process()
