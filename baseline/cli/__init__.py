"""The command line, built with Typer."""
