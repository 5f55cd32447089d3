"""Measure from the command line: overrides of conf/bench.yaml."""

import sys

from experiments.bench.settings import build


def main() -> None:
    """Run the bench that the arguments name."""
    try:
        job = build(sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    try:
        job.run()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
