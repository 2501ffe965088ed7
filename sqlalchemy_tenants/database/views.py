"""Views that read tables with the rights of their owner."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text

from ..tenancy import Tenancy
from .catalog import _USER_SCHEMAS, holders


class View(NamedTuple):
    """A view that reads a table with the rights of the view's owner.

    :param table: schema and name of the table, which it may read through other views.
    :param holders: who holds privileges on the view, its owner aside.
    :param owner_reads: whether the view's owner is exempt from the policies of other
        owners' tables: a superuser, or with ``BYPASSRLS``, or with the admin role.
    """

    schema: str
    name: str
    table: tuple[str, str]
    materialized: bool
    holders: list[str]
    owner_reads: bool


#: Whether a view ``v`` reads with the rights of its owner.
_READS_AS_OWNER = """NOT EXISTS (
    SELECT FROM pg_catalog.pg_options_to_table(v.reloptions) o
    WHERE o.option_name = 'security_invoker' AND o.option_value::boolean)"""

_VIEWS = text(
    f"""
    WITH RECURSIVE direct AS (
        SELECT DISTINCT w.ev_class AS view, d.refobjid AS source
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid AND w.ev_class <> d.refobjid
        WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
    ), reads AS (
        SELECT view, source FROM direct
        UNION SELECT reads.view, direct.source
        FROM reads JOIN direct ON direct.view = reads.source
    )
    SELECT vn.nspname, v.relname, n.nspname, c.relname, v.relkind = 'm',
        {holders("v")},
        owner.rolsuper OR owner.rolbypassrls
        OR coalesce(pg_catalog.pg_has_role(owner.oid, admin.oid, 'USAGE'), false)
    FROM reads
    JOIN pg_catalog.pg_class v ON v.oid = reads.view AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace
    JOIN pg_catalog.pg_class c ON c.oid = reads.source AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_roles owner ON owner.oid = v.relowner
    LEFT JOIN pg_catalog.pg_roles admin ON admin.rolname = :admin_role
    WHERE {_USER_SCHEMAS} AND {_READS_AS_OWNER}
    """
)


def read_views(connection: Connection, tenancy: Tenancy) -> list[View]:
    """Read the views that read a table with the rights of their owner, directly or
    through other views; one query."""
    rows = connection.execute(_VIEWS, {"admin_role": tenancy.admin_role})
    return [
        View(schema, name, (table_schema, table), *rest)
        for schema, name, table_schema, table, *rest in rows
    ]
