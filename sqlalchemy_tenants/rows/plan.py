"""Plan: which tables have rows of tenants, and how they hang together.

The models say which tables; the database says what they are like. Everything is asked
as the role that is to work, before anything is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import ARRAY, Connection, MetaData, Table, Text, bindparam, schema, text

from .. import roles
from ..declare import SharedTable, TenantTable, marks
from ..exceptions import TenantNotFound
from ..policies import (
    ADMIN_POLICY,
    FLOOR_POLICY,
    ISOLATION_POLICY,
    printed,
    quote_qualified,
)
from ..scope import execute_all, execute_text, quote
from ..tenancy import Tenancy, TenantId
from .results import RowsError

if TYPE_CHECKING:
    from ..managers import PostgresManager

Privilege: TypeAlias = Literal["SELECT", "INSERT", "UPDATE", "DELETE"]

# Whatever the manager, the login or the database says: how values are printed and read,
# and that a limit for requests is none for all rows of a tenant.
_SETTINGS = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL datestyle = 'ISO, MDY'",
    "SET LOCAL intervalstyle = 'postgres'",
    "SET LOCAL timezone = 'UTC'",
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL lc_monetary = 'C'",
    "SET LOCAL xmloption = 'content'",
    "SET LOCAL array_nulls = on",
    "SET LOCAL client_encoding = 'UTF8'",
)
# From 17 on there is a limit for whole transactions, too.
_NO_TRANSACTION_TIMEOUT = "SET LOCAL transaction_timeout = 0"

_APPLIES = """(0::oid = ANY (p.polroles) OR EXISTS (
                SELECT FROM pg_catalog.unnest(p.polroles) AS role(oid)
                WHERE pg_catalog.pg_has_role(role.oid, 'USAGE')))"""

# format_type(…, -1): a type without its length, by a name that means no other length.
# A domain over integers has their typsend. Keys of another type have no order that a
# sequence could be set behind, as of 'INV-' || nextval('invoices').
_TABLES = text(
    f"""
    SELECT wanted.position::integer, c.oid::bigint, n.nspname, c.relname,
        c.relkind::text,
        ARRAY(SELECT p.relid::oid
            FROM pg_catalog.pg_partition_ancestors(c.oid) p
            WHERE p.relid <> c.oid) AS partitioned,
        pg_catalog.row_security_active(c.oid) AS confines,
        NOT EXISTS (SELECT FROM pg_catalog.unnest(:policies) AS policy(name)
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_policy p
                WHERE p.polrelid = c.oid AND p.polname = policy.name
                AND p.polpermissive = (policy.name <> '{FLOOR_POLICY}')
                AND p.polcmd = '*' AND {_APPLIES})) AS has_policies,
        (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.polname,
            pg_catalog.pg_get_expr(p.polqual, p.polrelid),
            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)))
            FROM pg_catalog.pg_policy p
            WHERE p.polrelid = c.oid AND p.polname = ANY (:policies)
        )::text AS conditions,
        ARRAY(SELECT p.polname::text FROM pg_catalog.pg_policy p
            WHERE p.polrelid = c.oid AND p.polname <> ALL (:policies)
            AND NOT p.polpermissive AND {_APPLIES}
            AND (p.polcmd IN ('*', 'r', 'd') OR p.polcmd = 'w'
                AND :privilege = 'UPDATE')
            ORDER BY p.polname) AS hiding,
        ARRAY(SELECT i.inhrelid FROM pg_catalog.pg_inherits i
            WHERE i.inhparent = c.oid AND c.relkind = 'r') AS children,
        CASE WHEN c.oid IS NOT NULL
            THEN pg_catalog.has_table_privilege(c.oid, :privilege) END AS privileged,
        (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
            a.attname,
            pg_catalog.format_type(a.atttypid, a.atttypmod),
            pg_catalog.format_type(a.atttypid, -1),
            a.attgenerated <> '',
            a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
            :privilege = 'DELETE'
                OR pg_catalog.has_column_privilege(c.oid, a.attnum, :privilege),
            CASE WHEN t.typsend IN ('pg_catalog.int2send'::pg_catalog.regproc,
                'pg_catalog.int4send'::pg_catalog.regproc,
                'pg_catalog.int8send'::pg_catalog.regproc) THEN COALESCE(
                pg_catalog.to_regclass(pg_catalog.pg_get_serial_sequence(
                    pg_catalog.format('%I.%I', n.nspname, c.relname), a.attname)
                )::oid::bigint,
                (SELECT d.refobjid::bigint FROM pg_catalog.pg_attrdef f
                JOIN pg_catalog.pg_depend d ON d.objid = f.oid
                    AND d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
                WHERE f.adrelid = c.oid AND f.adnum = a.attnum LIMIT 1),
                pg_catalog.to_regclass(wanted.sequences::pg_catalog.json ->> a.attname)
                ::oid::bigint) END
            ) ORDER BY a.attnum)
            FROM pg_catalog.pg_attribute a
            JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        )::text AS columns
    FROM unnest(:names, :sequences) WITH ORDINALITY AS wanted(name, sequences, position)
    LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(wanted.name)
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    ORDER BY wanted.position
    """
).bindparams(
    bindparam("names", type_=ARRAY(Text)),
    bindparam("sequences", type_=ARRAY(Text)),
    bindparam("policies", type_=ARRAY(Text)),
)

_FOREIGN_KEYS = text(
    """
    SELECT f.conname, f.conrelid::bigint, f.confrelid::bigint, f.condeferrable
    FROM pg_catalog.pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0
    AND f.conrelid = ANY (CAST(:tables AS oid[]))
    AND f.confrelid = ANY (CAST(:tables AS oid[]))
    ORDER BY f.conname
    """
)


class Column(NamedTuple):
    """A column as the database has it.

    :param type: its type, as in ``"character varying(30)"``.
    :param base: the same without length or precision, which reads any text of it.
    :param is_generated: the database computes its value.
    :param is_required: it must be given a value.
    :param is_allowed: the role may do with it what it is to do.
    :param sequence: OID of the sequence that its values come from.
    """

    name: str
    type: str
    base: str
    is_generated: bool
    is_required: bool
    is_allowed: bool
    sequence: int | None


@dataclass(frozen=True)
class PlannedTable:
    """A table whose rows belong to tenants.

    :param name: as the models call it, with its schema where they name one.
    :param sql: the same for SQL; never bound to another table on the search path.
    :param source: the same for ``FROM``, without tables that inherit from it.
    :param columns: those that are stored.
    :param own: condition for rows of the current tenant, that of the policies.
    """

    oid: int
    name: str
    sql: str
    source: str
    mark: TenantTable
    columns: tuple[Column, ...]
    own: str


class ForeignKey(NamedTuple):
    """A foreign key between two planned tables."""

    name: str
    table: int
    referenced: int
    is_deferrable: bool


@dataclass(frozen=True)
class Plan:
    """Tables of tenants, and what is left out."""

    tables: tuple[PlannedTable, ...]
    left_out: tuple[str, ...]


def require_metadata(metadata: MetaData | None, operation: str) -> MetaData:
    """Return the models.

    :raises TypeError: the manager has none.
    """
    if metadata is None:
        raise TypeError(
            f"{operation} needs the models, which say what belongs to tenants: "
            f"PostgresManager.from_engine(..., metadata=Base.metadata)"
        )
    return metadata


@contextmanager
def acting(
    manager: PostgresManager, tenant: TenantId, as_admin: bool
) -> Iterator[Connection]:
    """Yield a connection that is confined to a tenant and set up, in a transaction that
    is committed.

    :param as_admin: as the admin role narrowed to it, not as the tenant itself.
    :raises TenantNotFound: the tenant does not exist.
    """
    if not as_admin:
        with manager.unguarded().begin(tenant) as connection:
            set_up(connection)
            yield connection
        return
    with manager.admin_session(tenant) as session:
        connection = session.connection()
        set_up(connection)
        yield connection
        session.commit()


def require_role(
    connection: Connection, tenant: TenantId, manager: PostgresManager
) -> None:
    """Refuse a tenant that does not exist, which the admin role would not notice.

    :raises TenantNotFound: it has no role, under ``isolation="role"``.
    """
    if manager.isolation == "role" and not roles.is_tenant(
        connection, tenant, manager.tenancy
    ):
        raise TenantNotFound(
            f"tenant {tenant!r} has no role {manager.tenancy.role_for(tenant)!r}; its "
            f"rows were left alone, because it may never have existed: see "
            f"create_tenant({tenant!r})",
            tenant=tenant,
        )


def set_up(connection: Connection) -> None:
    """Let values be printed and read in one way, and statements take their time, in
    this transaction."""
    execute_all(connection, _SETTINGS)
    if (connection.dialect.server_version_info or ()) >= (17,):
        execute_text(connection, _NO_TRANSACTION_TIMEOUT)


def make_plan(
    connection: Connection,
    metadata: MetaData,
    tenancy: Tenancy,
    tenant: TenantId,
    privilege: Privilege,
    *,
    hidden: bool = False,
    admin: bool = False,
) -> Plan:
    """Return what is to be done, and refuse what cannot be.

    :param connection: in a transaction of the role that is to work.
    :param privilege: what it is to do.
    :param hidden: whether rows may be hidden from it.
    :param admin: whether it is the admin role.
    :raises RowsError: a table is missing or is no table, its policies do not confine
        this role or hide rows from it, or the role has not the privilege.
    """
    wanted = [
        (table, mark)
        for table, mark in marks(metadata)
        if isinstance(mark, TenantTable)
    ]
    parameters = {
        "names": [quote_qualified(table.schema, table.name) for table, _ in wanted],
        "sequences": [json.dumps(_named_sequences(table)) for table, _ in wanted],
        "policies": [ADMIN_POLICY] if admin else [ISOLATION_POLICY, FLOOR_POLICY],
        "privilege": privilege,
    }
    rows = connection.execute(_TABLES, parameters).all()
    known = {row.oid for row in rows}
    tables = []
    for (table, mark), row in zip(wanted, rows, strict=True):
        if not known.isdisjoint(row.partitioned):
            continue  # its rows are those of the partitioned table
        _require_usable(table.fullname, row, known, tenant)
        columns = tuple(Column(*each) for each in json.loads(row.columns))
        _require_confined(table.fullname, row, mark, tenancy, tenant)
        if not hidden:
            _require_visible(table.fullname, row, tenant, admin=admin)
        _require_privilege(table.fullname, row, columns, privilege, tenant)
        stored = tuple(column for column in columns if not column.is_generated)
        tables.append(_planned(table, mark, row, stored, tenancy))
    left_out = [
        table.fullname
        for table, mark in marks(metadata)
        if isinstance(mark, SharedTable)
    ]
    return Plan(tuple(tables), tuple(left_out))


def _planned(
    table: Table,
    mark: TenantTable,
    row: Any,
    columns: tuple[Column, ...],
    tenancy: Tenancy,
) -> PlannedTable:
    name = f"{quote(row.nspname)}.{quote(row.relname)}"
    own = mark.policies(tenancy)[0].using
    assert own is not None
    return PlannedTable(
        oid=row.oid,
        name=table.fullname,
        sql=name,
        source=name if row.relkind == "p" else f"ONLY {name}",
        mark=mark,
        columns=columns,
        own=own,
    )


def _named_sequences(table: Table) -> dict[str, str]:
    """Return the sequences that the model names, by column; where the column has no
    default in the database, nothing there tells of them."""
    return {
        column.name: quote_qualified(column.default.schema, column.default.name)
        for column in table.columns
        if isinstance(column.default, schema.Sequence)
    }


def _require_usable(name: str, row: Any, known: set[Any], tenant: TenantId) -> None:
    if row.oid is None:
        raise RowsError(
            f"table {name!r} of the models does not exist, or its schema is closed to "
            f"tenants; run the migrations (alembic upgrade head) first",
            tenant=tenant,
        )
    if row.relkind not in ("r", "p"):
        raise RowsError(
            f"{name!r} is a view or a foreign table, whose rows are elsewhere; mark "
            f"the tables that it reads instead",
            tenant=tenant,
        )
    if not known.issuperset(row.children):
        raise RowsError(
            f"tables without a mark inherit (INHERITS) from table {name!r}, so that "
            f"their rows would be missed; mark them, too",
            tenant=tenant,
        )


def _require_confined(
    name: str, row: Any, mark: TenantTable, tenancy: Tenancy, tenant: TenantId
) -> None:
    if (
        not row.confines
        or not row.has_policies
        or not all(
            {using, with_check or using} <= _complete(policy, mark, tenancy)
            for policy, using, with_check in json.loads(row.conditions)
        )
    ):
        raise RowsError(
            f"table {name!r} does not confine tenants to their rows: row-level "
            f"security is off, or one of its policies is missing or altered; see "
            f"manager.check(), and repair it with alembic revision --autogenerate",
            tenant=tenant,
        )


def _complete(policy: str, mark: TenantTable, tenancy: Tenancy) -> set[str]:
    """Return the conditions, as PostgreSQL prints them, that hide no row of a tenant
    from it: that of our policy, under whatever search path, and that of a policy which
    somebody has opened. Each statement names the tenant, too."""
    return {"true"} | {
        text
        for visible in (False, True)
        for text in printed(
            policy,
            mark.column,
            mark.cast,
            tenancy,
            bytewise=mark.bytewise,
            visible=visible,
        )
    }


def _require_visible(name: str, row: Any, tenant: TenantId, *, admin: bool) -> None:
    if row.hiding:
        hint = (
            "for the tenants' group role only, which the admin role is not in"
            if admin
            else "for INSERT and UPDATE only, or pass as_admin=True"
        )
        raise RowsError(
            f"policies {', '.join(row.hiding)} of table {name!r} may hide rows from "
            f"their own tenant, so that some would be missed; make them permissive, or "
            f"{hint}",
            tenant=tenant,
        )


def _require_privilege(
    name: str,
    row: Any,
    columns: Sequence[Column],
    privilege: Privilege,
    tenant: TenantId,
) -> None:
    lacking = [c.name for c in columns if not c.is_allowed and not c.is_generated]
    if lacking or (privilege == "DELETE" and not row.privileged):
        of = f" on column {', '.join(lacking)}" if lacking and row.oid else ""
        raise RowsError(
            f"{privilege} on table {name!r}{of} is not granted to the role that works "
            f"on the rows; see manager.check(), and repair it with alembic revision "
            f"--autogenerate",
            tenant=tenant,
        )


def foreign_keys(connection: Connection, plan: Plan) -> list[ForeignKey]:
    """Return the foreign keys between the tables."""
    statement = _FOREIGN_KEYS
    parameters = {"tables": [table.oid for table in plan.tables]}
    return [ForeignKey(*row) for row in connection.execute(statement, parameters)]


def in_order(
    tables: Sequence[PlannedTable], keys: Sequence[ForeignKey]
) -> Iterator[tuple[PlannedTable, ...]]:
    """Yield the tables, what is referenced first. Those that reference each other come
    together."""
    reached = {table.oid: {table.oid} for table in tables}
    before = -1
    while before != (before := sum(map(len, reached.values()))):
        for key in keys:
            if key.table in reached and key.referenced in reached:
                reached[key.table] |= reached[key.referenced]
    done: set[int] = set()
    # what reaches less comes first: it can reach nothing that reaches more
    for table in sorted(tables, key=lambda each: len(reached[each.oid])):
        if table.oid not in done:
            group = [t for t in tables if reached[t.oid] == reached[table.oid]]
            done |= {each.oid for each in group}
            yield tuple(group)


def in_text(sql: str) -> str:
    """Return SQL for a part of ``text()``, which takes a colon for a parameter."""
    return sql.replace(":", r"\:")


def at_once(
    connection: Connection, statements: Iterable[str], parameters: dict[str, str]
) -> Sequence[int]:
    """Execute statements as parts of a single one, and count the rows of each.

    Foreign keys are checked when all parts are done, so that the order of the tables
    and cycles between them do not matter.
    """
    parts = [f"t{n} AS ({part})" for n, part in enumerate(statements)]
    if not parts:
        return ()
    counts = ", ".join(
        f"(SELECT pg_catalog.count(*) FROM t{n})" for n in range(len(parts))
    )
    statement = text(f"WITH {', '.join(parts)} SELECT {counts}")
    return connection.execute(statement, parameters).one()
