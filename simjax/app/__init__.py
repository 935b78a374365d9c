"""The command line and the demonstration."""

from __future__ import annotations

import sys

from simjax.app import interrupts


def main() -> int:
    """Entry point of the command `simjax`: says what to install where the packages of the command line are missing."""
    interrupts.listen()
    try:
        from simjax.app import cli
    except ModuleNotFoundError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return cli.main()
