"""`python -m exporters.standin`."""

from exporters.standin.command import main

if __name__ == "__main__":
    raise SystemExit(main())
