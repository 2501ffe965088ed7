"""``sqlalchemy-tenants tenants``: what the manager does with tenants and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from ..managers import PostgresManager
from ..rows import RowCounts
from .connecting import with_manager
from .failures import Refusal
from .progress import Bars


@click.group()
def tenants() -> None:
    """List, create, move and delete tenants.

    Each command connects as the application (--url); what needs the manager's login
    connects as that (--admin-url).
    """


_URLS = ("postgresql:", "postgresql+", "postgres:")


def _name(_ctx: object, _param: object, tenant: str | None) -> str | None:
    # it would become the name of a role, password and all
    if tenant is not None and tenant.startswith(_URLS):
        raise click.UsageError("a tenant is named by a URL of a database; use --url")
    return tenant


_tenant = click.argument("tenant", callback=_name)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_as_admin = click.option(
    "--as-admin",
    is_flag=True,
    help="As the admin role, narrowed to the tenant: one that is suspended, or whose "
    "rows a policy hides from it.",
)


def _print_counts(counts: RowCounts, what: str, quiet: bool) -> None:
    if quiet:
        return
    for table, rows in counts.items():
        click.echo(f"{rows:>12,}  {table}")
    click.echo(f"{counts.total:>12,}  rows {what}")
    if counts.left_out:
        shared = ", ".join(counts.left_out)
        click.echo(f"left alone, because all tenants share them: {shared}")


def _require_roles() -> None:
    if click.get_current_context().params["isolation"] == "shared":
        raise Refusal(
            "under isolation 'shared' the database keeps rows of tenants but no "
            "tenants; the application's own table does"
        )


def _require_tenant(manager: PostgresManager, tenant: str) -> None:
    """Refuse a tenant that does not exist, which the admin role would not notice."""
    if manager.isolation == "role" and tenant not in manager.list_tenants():
        raise Refusal(f"there is no tenant {tenant!r}; tenants list prints them")


# --- tenants --------------------------------------------------------------------------


@tenants.command("list")
@click.option("--suspended", is_flag=True, help="Only those that are suspended.")
@_as_json
@with_manager
def list_(manager: PostgresManager, suspended: bool, as_json: bool) -> None:
    """Print all tenants, one a line."""
    found = manager.list_tenants(suspended=suspended or None)
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
    given = [tenant for tenant in (*names, *lines) if tenant]
    for tenant in given:
        _name(None, None, tenant)
    if not given:
        raise click.UsageError("which tenants? Name them, or pass --file")
    with Bars(quiet) as bars:
        created = manager.create_tenants(
            given, progress=lambda done: bars.show("tenants", done, len(given))
        )
    if not quiet:
        click.echo(f"{created} created, {len(set(given)) - created} there already")


@tenants.command()
@_tenant
@with_manager
def suspend(manager: PostgresManager, tenant: str) -> None:
    """Let nobody act as a tenant until it is resumed.

    A transaction at work ends as it likes; the next one is refused.
    """
    manager.suspend_tenant(tenant)


@tenants.command()
@_tenant
@with_manager
def resume(manager: PostgresManager, tenant: str) -> None:
    """Let those act as a tenant again who could when it was suspended."""
    manager.resume_tenant(tenant)


@tenants.command()
@_tenant
@click.option("--rows", is_flag=True, help="Delete its rows, too.")
@click.option("--dry-run", is_flag=True, help="Only count the rows that it has.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_quiet
@with_manager
def delete(
    manager: PostgresManager,
    tenant: str,
    rows: bool,
    dry_run: bool,
    yes: bool,
    quiet: bool,
) -> None:
    """Delete a tenant. Its rows stay, unless --rows is given.

    Whoever creates a tenant of this name later sees rows that stay.
    """
    if dry_run:
        # as the role that would delete them
        _require_tenant(manager, tenant)
        counts = manager.delete_rows(tenant, dry_run=True, as_admin=True)
        _print_counts(counts, "to delete", quiet)
        return
    if not rows:
        _require_roles()
    what = "and all of its rows" if rows else "and leave its rows"
    if not yes and not click.confirm(f"Delete tenant {tenant!r} {what}?", err=True):
        raise Refusal("nothing was deleted")
    with Bars(quiet) as bars:
        deleted = manager.delete_tenant(tenant, rows, progress=bars.rows)
    if rows:
        _print_counts(RowCounts(deleted), "deleted", quiet)


@tenants.command()
@click.argument("old", callback=_name)
@click.argument("new", callback=_name)
@_quiet
@with_manager
def rename(manager: PostgresManager, old: str, new: str, quiet: bool) -> None:
    """Give a tenant another name, and its rows, too.

    Let the application stop using the old name before.
    """
    with Bars(quiet) as bars:
        counts = manager.rename_tenant(old, new, progress=bars.rows)
    _print_counts(counts, "renamed", quiet)


# --- rows -----------------------------------------------------------------------------

_path = click.argument("path", type=click.Path(dir_okay=False, path_type=Path))


@tenants.command()
@_tenant
@_path
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@_as_admin
@_quiet
@with_manager
def export(
    manager: PostgresManager,
    tenant: str,
    path: Path,
    overwrite: bool,
    as_admin: bool,
    quiet: bool,
) -> None:
    """Write all rows of a tenant into a file, as they are at one moment."""
    if as_admin:
        _require_tenant(manager, tenant)
    with Bars(quiet) as bars:
        counts = manager.export_rows(
            tenant,
            path,
            overwrite=overwrite,
            as_admin=as_admin,
            progress=bars.rows,
        )
    _print_counts(counts, "exported", quiet)


@tenants.command("import")
@_tenant
@_path
@click.option(
    "--as", "as_tenant", metavar="TENANT", callback=_name, help="Whose they become."
)
@_as_admin
@_quiet
@with_manager
def import_(
    manager: PostgresManager,
    tenant: str,
    path: Path,
    as_tenant: str | None,
    as_admin: bool,
    quiet: bool,
) -> None:
    """Insert a tenant's rows from a file, all of them or none.

    The tenant that they are for has to exist.
    """
    if as_admin:
        _require_tenant(manager, tenant if as_tenant is None else as_tenant)
    with Bars(quiet) as bars:
        counts = manager.import_rows(
            tenant,
            path,
            as_tenant=as_tenant,
            as_admin=as_admin,
            progress=bars.rows,
        )
    _print_counts(counts, "imported", quiet)
