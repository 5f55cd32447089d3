"""The runner; the same application as the command `dirotq`."""

from dirotq.lab.app import main

if __name__ == "__main__":
    main()
