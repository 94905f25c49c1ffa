"""The `uara` command: checks that the packages are ours, then hands over to the command line."""

from __future__ import annotations

import importlib
import sys

from uara.shadowing import check_packages


def main() -> None:
    """Run the command line.

    It is imported by name only here, after the check of `uara.shadowing`, so that a foreign package
    of the same name ends in that check's one clear line.
    """
    try:
        check_packages()
        cli = importlib.import_module("experiments.cli")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    cli.main()


if __name__ == "__main__":
    main()
