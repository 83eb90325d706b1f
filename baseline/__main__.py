"""`python -m baseline`: the command line."""

__all__ = ["run"]


def run() -> None:
    """Run the command line; an interrupt while it is imported ends the process without a traceback."""
    try:
        from baseline.terminal import remove_odd_sizes

        remove_odd_sizes()
        from baseline.cli.app import run_process
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run_process()


if __name__ == "__main__":
    run()
