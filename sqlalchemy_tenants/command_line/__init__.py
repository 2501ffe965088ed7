"""The command line: ``check``, ``tenants`` and ``setup``. It needs the extra ``cli``.

Nothing of it is loaded by an application.
"""

from __future__ import annotations

import click

from .check import check
from .failures import Commands
from .setup import setup
from .tenants import tenants

EPILOG = """\b
Exit status:
    0   done; the check found nothing
    1   the check found something, or a tenant's command was refused
    2   wrong usage, models that cannot be imported, no connection,
        an error of the database or of a file
    130 interrupted
"""


@click.group(
    "sqlalchemy-tenants",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(package_name="sqlalchemy-tenants")
def cli() -> None:
    """Check the isolation of tenants, and manage tenants."""


for command in (check, tenants, setup):
    cli.add_command(command)
