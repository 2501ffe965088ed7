"""``sqlalchemy-tenants tenants``: what the manager does with tenants and their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import click

from ..managers import PostgresManager
from .connecting import with_manager
from .failures import Refusal
from .progress import Bars


@click.group()
def tenants() -> None:
    """List, create, move and delete tenants.

    Each command connects as the application (--url); what needs the manager's login
    connects as that (--admin-url).
    """


_tenant = click.argument("tenant", callback=lambda _ctx, _param, given: _name(given))
_path = click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _name(tenant: str) -> str:
    # it would become the name of a role, password and all
    if tenant.startswith(("postgresql:", "postgresql+", "postgres:")):
        raise click.UsageError("a tenant is named by a URL of a database; use --url")
    return tenant


def _print_counts(counts: Mapping[str, int], what: str, quiet: bool) -> None:
    if quiet:
        return
    for table, rows in counts.items():
        click.echo(f"{rows:>12,}  {table}")
    click.echo(f"{sum(counts.values()):>12,}  rows {what}")


def _confirm(question: str) -> None:
    if not click.confirm(question, err=True):
        raise Refusal("nothing was done")


def _require_roles() -> None:
    if click.get_current_context().params["isolation"] == "shared":
        raise Refusal(
            "under isolation 'shared' the database keeps rows of tenants but no "
            "tenants; the application's own table does"
        )


# --- tenants --------------------------------------------------------------------------


@tenants.command("list")
@_as_json
@with_manager
def list_(manager: PostgresManager, as_json: bool) -> None:
    """Print all tenants, one a line."""
    found = manager.list_tenants()
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo("".join(f"{tenant}\n" for tenant in found), nl=False)


@tenants.command()
@click.argument("names", metavar="[TENANT]...", nargs=-1)
@click.option(
    "--file",
    "-f",
    type=click.File(encoding="utf-8"),
    help='A file with a tenant a line, or "-" for the standard input.',
)
@_quiet
@with_manager
def create(
    manager: PostgresManager,
    names: tuple[str, ...],
    file: TextIO | None,
    quiet: bool,
) -> None:
    """Create tenants, those that exist aside.

    It commits every so often, so that it can be interrupted and run again.
    """
    _require_roles()
    if "-" in names:
        raise click.UsageError("to read tenants from the standard input pass --file -")
    # not splitlines(), which ends a line at more than its end
    lines = file.read().split("\n") if file is not None else []
    given = [_name(tenant) for tenant in (*names, *lines) if tenant]
    if not given:
        raise click.UsageError("which tenants? Name them, or pass --file")
    with Bars(quiet) as bars:
        created = manager.create_tenants(
            given, progress=lambda done: bars.show("tenants", done, len(given))
        )
    if not quiet:
        click.echo(f"{created} created, {len(set(given)) - created} there already")
