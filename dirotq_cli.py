"""The console script. Outside the package, so that Ctrl-C also stops it cleanly while torch and diffusers load."""

import sys


def main() -> None:
    """Run `dirotq`; see dirotq.lab.app."""
    try:
        from dirotq.lab.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nstopped; finished stages are kept, and the same command goes on from there\n"
        )
        sys.exit(130)  # what a shell reports for Ctrl-C


def report() -> None:
    """Run `dirotq-report`; see dirotq.report.app."""
    try:
        from dirotq.report.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)


def judge() -> None:
    """Run `dirotq-judge`; see dirotq.judge.app."""
    try:
        from dirotq.judge.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; answers are kept, and the same command goes on from there\n")
        sys.exit(130)


def cache() -> None:
    """Run `dirotq-cache`; see dirotq.lab.cache_command."""
    try:
        from dirotq.lab.cache_command import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)


if __name__ == "__main__":  # accelerate launch -m dirotq_cli
    main()
