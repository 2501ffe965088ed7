"""Testing: what the tests of an application need.

Nothing else imports this module: :func:`create_all` loads Alembic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from .database.trial import Leak, Trial
from .declare import marks
from .exceptions import ScopeError
from .managers import PostgresManager
from .scope import INSUFFICIENT_PRIVILEGE, sqlstate
from .tenancy import Tenancy, TenantId, tenant_text
from .values import Context

__all__ = ["Leak", "NotIsolated", "assert_isolated", "create_all"]

_LACKING_ROLES = text(
    """
    SELECT current_user, ARRAY(
        SELECT wanted FROM pg_catalog.unnest(CAST(:roles AS text[])) AS wanted
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted)
    ) AS lacking
    FROM pg_catalog.pg_roles
    WHERE rolname = current_user AND NOT rolcreaterole AND NOT rolsuper
    """
)
_LACKING_SCHEMAS = text(
    """
    SELECT wanted FROM pg_catalog.unnest(CAST(:schemas AS text[])) AS wanted
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = wanted)
    """
)

# What walks over the tables, and what is ours. Nothing here is for other differences.
_PLUGINS = [
    "alembic.autogenerate.schemas",
    "alembic.autogenerate.tables",
    "alembic.autogenerate.tenants",
]


def create_all(connection: Connection, metadata: MetaData) -> None:
    """Create the tables that do not exist, and all that a migration would add to them.

    In the place of ``metadata.create_all()``, for tests that run no migrations::

        with engine.begin() as connection:
            create_all(connection, Base.metadata)

        async with async_engine.begin() as connection:
            await connection.run_sync(create_all, Base.metadata)

    What autogenerate finds missing is done, so that a second call finds nothing. Tables
    of other models keep what they have. Nothing is committed or dropped, but for
    policies and privileges of these tables that the models do not have.

    Emits ``CREATE SCHEMA`` of schemas that the tables name, ``CREATE TABLE``, and what
    the operations of Alembic emit.

    :param connection: of a login that may create roles; a superuser's will do.
    :param metadata: the models.
    :raises ScopeError: the login lacks a right, or the database is not PostgreSQL.
    :raises TypeError: for another kind of connection.
    """
    _require_connection(connection)
    tenancy = Tenancy.of(metadata)
    if not any(marks(metadata)) and not Tenancy.is_bound(metadata):
        metadata.create_all(connection)
        return
    _require_roles(connection, tenancy)
    schemas = {table.schema for table in metadata.tables.values() if table.schema}
    lacking = connection.scalars(_LACKING_SCHEMAS, {"schemas": sorted(schemas)})
    with _naming_rights(connection):
        for schema in lacking.all():
            connection.execute(CreateSchema(schema))
        # what the tables' defaults ask for, and then what the tables themselves need
        _apply(connection, metadata, before_tables=True)
        metadata.create_all(connection)
        _apply(connection, metadata, before_tables=False)


def _require_connection(connection: object) -> None:
    if not isinstance(connection, Connection):
        raise TypeError(
            f"create_all takes a Connection, as engine.begin() gives it, not "
            f"{connection!r}; of an async engine: "
            f"await connection.run_sync(create_all, metadata)"
        )
    if connection.dialect.name != "postgresql":
        raise ScopeError(
            f"tenants need PostgreSQL; this connection's dialect is "
            f"{connection.dialect.name!r}"
        )


def _require_roles(connection: Connection, tenancy: Tenancy) -> None:
    given = {"roles": list(tenancy.group_roles)}
    for login, lacking in connection.execute(_LACKING_ROLES, given):
        if lacking:
            raise ScopeError(
                f"login {login!r} may not create the roles {', '.join(lacking)}; "
                f"connect as a login that may, or let a superuser run: "
                f'ALTER ROLE "{login}" CREATEROLE'
            )


@contextmanager
def _naming_rights(connection: Connection) -> Iterator[None]:
    """Say what a login needs to do as a migration does."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        raise ScopeError(
            f"create_all does what a migration does, as its login, which lacks a "
            f"right: {error.orig}; connect as the owner of the database and of the "
            f"tables, with CREATEROLE, or as a superuser"
        ) from error


def _apply(connection: Connection, metadata: MetaData, *, before_tables: bool) -> None:
    """Do what autogenerate finds missing.

    :param before_tables: what precedes all tables, and nothing else.
    """
    from alembic.autogenerate import produce_migrations
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    from alembic_ext.ops import TenancyOp
    from alembic_ext.order import flat

    context = MigrationContext.configure(
        connection,
        opts={
            "target_metadata": metadata,
            "include_schemas": True,
            "include_name": _naming(connection, metadata),
            "include_object": _includes,
            "autogenerate_plugins": _PLUGINS,
        },
    )
    script = produce_migrations(context, metadata)
    assert script.upgrade_ops is not None
    operations = Operations(context)
    for operation in flat(script.upgrade_ops.ops):
        if isinstance(operation, TenancyOp):
            operations.invoke(operation)
        elif before_tables:
            break


def _naming(connection: Connection, metadata: MetaData) -> Any:
    """Return an ``include_name`` of the tables of ``metadata``: other models may have
    tables in this database, too."""
    default = connection.dialect.default_schema_name
    wanted = {
        (None if table.schema == default else table.schema, table.name)
        for table in metadata.tables.values()
    }
    schemas = {schema for schema, _ in wanted}

    def include_name(name: str | None, type_: str, parents: Any) -> bool:
        if type_ == "schema":
            return name in schemas
        return type_ != "table" or (parents["schema_name"], name) in wanted

    return include_name


def _includes(object_: Any, name: Any, type_: str, *more: Any) -> bool:
    """An ``include_object`` that leaves out what other tools compare."""
    return type_ in ("table", "policy")


class NotIsolated(AssertionError):
    """A tenant can reach rows of another one, or a table proved nothing.

    :param leaks: everything that was found.
    """

    def __init__(self, leaks: Sequence[Leak]) -> None:
        super().__init__("tenants are not isolated:\n" + "\n".join(map(str, leaks)))
        self.leaks = tuple(leaks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.leaks,)


def assert_isolated(
    manager: PostgresManager,
    fill: Callable[[Any], object],
    tenants: Sequence[TenantId] = ("a", "b"),
    *,
    known: Collection[str] = (),
    context: Context | None = None,
) -> None:
    """Try to reach the rows of one tenant as another one, through everything that
    tenants can use in the database::

        def fill(session):
            session.add(Order(item="anvil"))

        assert_isolated(manager, fill)

    Each tenant reads every table, partition, view, materialized view, foreign table and
    ``SECURITY DEFINER`` function without arguments, of any schema, before and after
    another one adds its rows: what it sees must not change. Then it tries to update, to
    delete, to give away and to insert rows. The login tries to read as itself. The
    models say which tables all tenants share. A table of tenants in which ``fill``
    leaves no row is reported: it proves nothing.

    It runs in one transaction of one connection, and rolls that back. Tenants that do
    not exist are created, and deleted in the end. Sequences go on.

    :param manager: of the application's own login, with ``metadata``.
    :param fill: adds rows of a tenant to each of its tables; called with a session of
        each, which it may commit.
    :param tenants: two tenants or more.
    :param known: names of what is meant to be as it is, as they are reported.
    :param context: of all sessions, where policies ask for it, as in
        ``{"user_id": 7}``.
    :raises NotIsolated: with everything that was found, each in a line.
    :raises ScopeError: the login is a superuser or has ``BYPASSRLS``.
    :raises TypeError: ``fill`` is a coroutine function.
    :raises ValueError: the manager has no ``metadata``; there are less than two
        tenants; ``known`` names what tenants cannot use.
    """
    require_arguments(manager, tenants)
    with _existing(manager, tenants), manager._engine.connect() as connection:
        trial = begin_trial(connection, manager, tenants, context)
        try:
            for tenant in tenants:
                trial.before(tenant)
                with trial.open_session(tenant) as session:
                    _require_done(fill(session))
                    session.commit()
                trial.after(tenant)
            trial.attack()
        finally:
            trial.end()
    raise_leaks(trial, known)


@contextmanager
def _existing(manager: PostgresManager, tenants: Sequence[TenantId]) -> Iterator[None]:
    """Let tenants exist for a while."""
    with ExitStack() as stack:
        for tenant in missing_tenants(manager, tenants):
            manager.create_tenant(tenant)
            stack.callback(manager.delete_tenant, tenant)
        yield


def _require_done(result: object) -> None:
    if isawaitable(result):
        if iscoroutine(result):
            result.close()
        raise TypeError(
            "fill() is a plain function here; with an async manager use "
            "assert_isolated() of sqlalchemy_tenants.aio.testing"
        )


# The rest is not for applications; the async function calls it, too.


def require_arguments(manager: object, tenants: Sequence[TenantId]) -> None:
    """Refuse a manager and tenants that nothing could be proved with."""
    if not isinstance(manager, PostgresManager):
        raise TypeError(
            f"assert_isolated takes a PostgresManager, not {manager!r}; for that of "
            f"sqlalchemy_tenants.aio there is sqlalchemy_tenants.aio.testing"
        )
    if manager._metadata is None:
        raise ValueError(
            "the manager does not know the models, which say what belongs to tenants: "
            "PostgresManager.from_engine(engine, metadata=Base.metadata)"
        )
    if isinstance(tenants, str) or len(set(map(tenant_text, tenants))) < 2:
        raise ValueError(f"tenants are two or more, as in ('a', 'b'), not {tenants!r}")


def missing_tenants(
    manager: PostgresManager, tenants: Sequence[TenantId]
) -> list[TenantId]:
    """Return those tenants that have no role and need one."""
    if manager._isolation == "shared":
        return []
    known = set(manager.list_tenants())
    return [tenant for tenant in tenants if tenant_text(tenant) not in known]


def begin_trial(
    connection: Connection,
    manager: PostgresManager,
    tenants: Sequence[TenantId],
    context: Context | None,
) -> Trial:
    """Begin a trial on a connection."""
    default = manager._schema or connection.dialect.default_schema_name or "public"
    assert manager._metadata is not None
    bound = manager.unguarded().bound_to(connection)
    trial = Trial(
        connection,
        partial(bound.new_session, context=context),
        {
            (table.schema or default, table.name): mark
            for table, mark in marks(manager._metadata)
        },
        tenants,
    )
    trial.begin()
    return trial


def raise_leaks(trial: Trial, known: Collection[str]) -> None:
    """Raise what was found, but for what is known."""
    if isinstance(known, str):
        raise ValueError(f"known is a list of names, not {known!r}")
    unknown = sorted(set(known) - trial.objects)
    if unknown:
        raise ValueError(
            f"known names {', '.join(unknown)}, which tenants cannot use; it must be "
            f"some of {', '.join(sorted(trial.objects))}"
        )
    leaks = [leak for leak in trial.leaks if leak.object not in known]
    if leaks:
        raise NotIsolated(leaks)
