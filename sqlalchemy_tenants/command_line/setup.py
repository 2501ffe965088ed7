"""``sqlalchemy-tenants setup``: the SQL that an installation begins with."""

from __future__ import annotations

import click

from ..tenancy import Isolation, Tenancy
from .connecting import load_metadata, models_option
from .logins import SERVERS, Installation, setup_sql


@click.command()
@click.option(
    "--isolation",
    type=click.Choice(["role", "shared"]),
    default="role",
    show_default=True,
    help="As the application's manager has it.",
)
@click.option(
    "--server",
    type=click.Choice(list(map(str, SERVERS))),
    default=str(SERVERS[-1]),
    show_default=True,
    help="PostgreSQL's major version.",
)
@click.option("--database", required=True, help="The database, created if missing.")
@click.option(
    "--owner",
    default="owner",
    show_default=True,
    help="Login that owns the tables and runs the migrations.",
)
@click.option(
    "--app", default="app", show_default=True, help="Login that serves requests."
)
@click.option(
    "--manager",
    default="manager",
    show_default=True,
    help="Login that creates tenants, and acts across them.",
)
@click.option(
    "--hardened",
    is_flag=True,
    help="Take from tenants what injected SQL needs: set_config() and the like.",
)
@models_option
def setup(
    isolation: Isolation,
    server: str,
    database: str,
    owner: str,
    app: str,
    manager: str,
    hardened: bool,
    models: str | None,
) -> None:
    """Print the logins and privileges of an installation, ready for psql.

    \b
    sqlalchemy-tenants setup --database shop --server 16 > setup.sql
    psql -d postgres -f setup.sql -v passwords=1

    A superuser runs it, before the first migration. It does no harm to run it again.
    It has no passwords: with -v passwords=1, psql asks for them. Where the models have
    a Tenancy with other names, pass --models.
    """
    tenancy = (
        Tenancy.given(None)
        if models is None
        else Tenancy.of(load_metadata(models, marked=False))
    )
    installation = Installation(
        server=int(server),
        isolation=isolation,
        database=database,
        owner=owner,
        app=app,
        manager=manager,
        tenancy=tenancy,
    )
    click.echo(setup_sql(installation, hardened=hardened), nl=False)
