"""``sqlalchemy-tenants check``: the manager's check, for a pipeline."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict

import click

from ..database.findings import Finding
from ..declare import marks
from ..exceptions import TenancyError
from ..tenancy import Isolation
from .connecting import (
    MODELS_VARIABLE,
    URL_VARIABLE,
    isolation_option,
    load_metadata,
    open_manager,
    schema_option,
)
from .failures import REFUSED, Failure


@click.command()
@click.argument("arguments", nargs=-1, metavar="[URL] [MODELS]")
@click.option("--strict", is_flag=True, help="Warnings fail the check, too.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@schema_option
@isolation_option
@click.pass_context
def check(
    ctx: click.Context,
    arguments: tuple[str, ...],
    strict: bool,
    as_json: bool,
    schema: str | None,
    isolation: Isolation,
) -> None:
    """Report what makes the isolation of tenants void.

    URL is that of the application's login, because the check is about what that login
    can reach. MODELS is module:attribute, as in models:Base. Without them,
    SQLALCHEMY_TENANTS_URL and SQLALCHEMY_TENANTS_MODELS say so.

    Exit status: 0 if nothing is wrong, 1 if there is an error (--strict: or a
    warning), 2 if the check could not run.
    """
    url, models = _url_and_models(arguments)
    metadata = load_metadata(models)
    try:
        with open_manager(url, None, metadata, schema, isolation) as manager:
            findings = manager.check()
    except TenancyError as error:  # 1 would say that something was found
        raise Failure(str(error)) from error
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        _print(findings, tables=sum(1 for _ in marks(metadata)))
    if any(strict or each.severity == "error" for each in findings):
        ctx.exit(REFUSED)


def _url_and_models(arguments: tuple[str, ...]) -> tuple[str | None, str | None]:
    urls = [each for each in arguments if "://" in each]
    models = [each for each in arguments if "://" not in each]
    if len(urls) > 1 or len(models) > 1:
        raise click.UsageError("the arguments are one URL and the models of it")
    return (
        urls[0] if urls else os.environ.get(URL_VARIABLE) or None,
        models[0] if models else os.environ.get(MODELS_VARIABLE) or None,
    )


def _print(findings: list[Finding], tables: int) -> None:
    width = max((len(each.code) for each in findings), default=0)
    for each in findings:
        color = "red" if each.severity == "error" else "yellow"
        severity = click.style(f"{each.severity:7}", fg=color)
        click.echo(f"{severity}  {each.code:{width}}  {each.object}: {each.message}")
        click.echo(f"{'':{width + 11}}{each.remedy}")
    count = Counter(each.severity for each in findings)
    click.echo(
        f"{tables} tables of tenants: {count['error']} errors, "
        f"{count['warning']} warnings"
    )
