"""Readers: which roles may read tables of tenants, and what the policies show them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ARRAY, Boolean, Connection, Text, bindparam, text

_READERS = text(
    """
    SELECT r.rolname, r.rolsuper OR r.rolbypassrls, ARRAY(
        SELECT g.rolname FROM pg_catalog.pg_roles g
        WHERE g.rolname = ANY (:admitted)
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))
    FROM pg_catalog.pg_roles r
    WHERE r.rolname = ANY (:roles)
    OR (:dumps AND r.rolcanlogin AND pg_catalog.pg_has_role(
        r.oid, 'pg_read_all_data', 'USAGE'))
    """
).bindparams(
    bindparam("roles", type_=ARRAY(Text)),
    bindparam("admitted", type_=ARRAY(Text)),
    bindparam("dumps", type_=Boolean),
)


def read_readers(
    connection: Connection,
    roles: Collection[str],
    admitted: Collection[str],
    *,
    dumps: bool = False,
) -> dict[str, frozenset[str] | None]:
    """Read which of the admitted roles other roles have the privileges of; one query.

    :param dumps: ask about logins that may read all tables, too.
    :return: by role; ``None`` for roles to which no policy applies.
    """
    rows = connection.execute(
        _READERS, {"roles": list(roles), "admitted": list(admitted), "dumps": dumps}
    )
    return {role: None if exempt else frozenset(has) for role, exempt, has in rows}
