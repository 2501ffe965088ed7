"""From arguments and environment to a manager: URLs, models, options."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import URL, Engine, MetaData, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from ..declare import marks
from ..managers import PostgresManager
from ..tenancy import Isolation
from .failures import Failure

URL_VARIABLE = "SQLALCHEMY_TENANTS_URL"
MODELS_VARIABLE = "SQLALCHEMY_TENANTS_MODELS"

_EXAMPLE = "postgresql://app@localhost/shop"

_F = TypeVar("_F", bound=Callable[..., Any])

# --- options --------------------------------------------------------------------------

schema_option = click.option(
    "--schema",
    envvar="SQLALCHEMY_TENANTS_SCHEMA",
    show_envvar=True,
    help="Schema of the application's tables.  [default: that of the login]",
)
isolation_option = click.option(
    "--isolation",
    type=click.Choice(["role", "shared"]),
    default="role",
    show_default=True,
    envvar="SQLALCHEMY_TENANTS_ISOLATION",
    show_envvar=True,
    help="As the application's manager has it.",
)
models_option = click.option(
    "--models",
    metavar="MODULE:ATTRIBUTE",
    envvar=MODELS_VARIABLE,
    show_envvar=True,
    help="The models, as in models:Base: a declarative base or a MetaData.",
)
_url_option = click.option(
    "--url",
    envvar=URL_VARIABLE,
    show_envvar=True,
    help="The application's login.",
)
_admin_url_option = click.option(
    "--admin-url",
    metavar="URL",
    envvar="SQLALCHEMY_TENANTS_ADMIN_URL",
    show_envvar=True,
    help="The login that creates tenants.  [default: the application's]",
)


def with_manager(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a manager, and the manager as first argument."""

    @_url_option
    @_admin_url_option
    @models_option
    @schema_option
    @isolation_option
    @functools.wraps(command)
    def run(
        *,
        url: str | None,
        admin_url: str | None,
        models: str | None,
        schema: str | None,
        isolation: Isolation,
        **kw: Any,
    ) -> None:
        metadata = load_metadata(models)
        with open_manager(url, admin_url, metadata, schema, isolation) as manager:
            command(manager, **kw)

    return run


@contextmanager
def open_manager(
    url: str | None,
    admin_url: str | None,
    metadata: MetaData,
    schema: str | None,
    isolation: Isolation,
) -> Iterator[PostgresManager]:
    """Yield a manager, whose engines are disposed of afterwards."""
    with ExitStack() as stack:

        def engine_of(text: str) -> Engine:
            # prepared statements would fail behind a pooler
            engine = create_engine(
                database_url(text), connect_args={"prepare_threshold": None}
            )
            stack.callback(engine.dispose)
            return engine

        if url is None:
            raise Failure(
                f"which database? Pass its URL, as in {_EXAMPLE}, or set {URL_VARIABLE}"
            )
        yield PostgresManager.from_engine(
            engine_of(url),
            schema,
            isolation=isolation,
            admin_engine=None if admin_url is None else engine_of(admin_url),
            metadata=metadata,
            create_if_missing=False,
        )


# --- URLs -----------------------------------------------------------------------------

# Parameters of asyncpg's URLs: what libpq calls them, None for what it has no need of.
_OF_ASYNCPG = {
    "ssl": "sslmode",
    "timeout": "connect_timeout",
    "async_fallback": None,
    "command_timeout": None,
    "prepared_statement_cache_size": None,
    "statement_cache_size": None,
}


def database_url(text: str) -> URL:
    """Return the URL that the command line connects to, whatever driver it names.

    Its messages never hold the text, which may have a password.
    """
    if text.count("@") > 1:
        # what comes after the first would be taken for the host, and be printed
        raise Failure(
            'the URL has more than one "@"; write %40 for those in names, passwords '
            "and parameters"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise Failure(f"that is no URL of a database, as in {_EXAMPLE}") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise Failure(
            f"tenants need PostgreSQL, and the URL is one of {url.get_backend_name()!r}"
        )
    if find_spec("psycopg") is None:
        raise Failure(
            "the command line connects by psycopg, whatever driver the URL names; run\n"
            '    pip install "sqlalchemy-tenants[cli]"'
        )
    query = dict(url.query)
    if url.drivername.endswith("+asyncpg"):
        for name in _OF_ASYNCPG.keys() & query.keys():
            value = query.pop(name)
            if (known_as := _OF_ASYNCPG[name]) is not None:
                query[known_as] = value
    return url.set(drivername="postgresql+psycopg", query=query)


# --- models ---------------------------------------------------------------------------


def load_metadata(models: str | None, *, marked: bool = True) -> MetaData:
    """Import the models from the current directory, or from what is installed.

    :param models: ``"module:attribute"``, where both may have dots.
    :param marked: refuse models without a table of tenants.
    """
    if models is None:
        raise Failure(
            f"which models? Name them, as in models:Base, or set {MODELS_VARIABLE}"
        )
    module, _, attribute = models.partition(":")
    if not module or not attribute or module.startswith("."):
        raise Failure(f"models are MODULE:ATTRIBUTE, as in models:Base, not {models!r}")
    target = _import(module)
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise Failure(f"{models}: {_name_of(target)} has no attribute {name!r}")
        target = getattr(target, name)
    metadata = getattr(target, "metadata", target)
    if not isinstance(metadata, MetaData):
        raise Failure(
            f"{models} is neither a declarative base nor a MetaData but a "
            f"{type(target).__name__}"
        )
    if marked and not any(marks(metadata)):
        raise Failure(
            f"{models} has no table that belongs to tenants; name a module that "
            f"imports all models, and mark them by with_rls"
        )
    return metadata


def _import(module: str) -> Any:
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise Failure(
                f"there is no module {error.name!r}, neither in {directory} nor among "
                f"the installed packages"
            ) from None
        raise _broken(module, error) from None
    except (Exception, SystemExit) as error:  # the application's own code
        raise _broken(module, error) from None


def _broken(module: str, error: BaseException) -> Failure:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Failure(
        f"module {module!r} cannot be imported: {type(error).__name__}: {error} "
        f"({where.filename}, line {where.lineno})"
    )


def _name_of(target: Any) -> str:
    return str(getattr(target, "__name__", type(target).__name__))
