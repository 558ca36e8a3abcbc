"""`python -m raysweep`."""

from raysweep.cli import main

if __name__ == "__main__":
    main()
