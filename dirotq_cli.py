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
