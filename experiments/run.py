"""The runner; the same application as the command `dirotq`."""

from dirotq_cli import main

if __name__ == "__main__":
    main()
