"""Reports; the same application as the command `dirotq-report`."""

from dirotq_cli import report

if __name__ == "__main__":
    report()
