"""The command ``sqlalchemy-tenants``, also as ``python -m sqlalchemy_tenants``."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; see docs/command-line.md."""
    if find_spec("click") is None:
        print(
            "Error: the command line needs more than the package itself; run\n"
            '    pip install "sqlalchemy-tenants[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from .command_line import cli

        cli(prog_name=cli.name)
    except KeyboardInterrupt:  # while it was loaded, or while it ended
        sys.exit(130)


if __name__ == "__main__":
    main()
