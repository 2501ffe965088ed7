"""Grants: the operations that lead from some privileges to others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from alembic.operations.ops import MigrateOperation

from sqlalchemy_tenants.database.catalog import Grant, ObjectType

from . import ops


def grant_ops(
    name: str | None,
    found: Iterable[Grant],
    wanted: Iterable[Grant],
    *,
    schema: str | None = None,
    object_type: ObjectType = "TABLE",
    columns: Sequence[str] = (),
    owner: str | None = None,
) -> list[MigrateOperation]:
    """Return revokes of what is found and not wanted, then grants of the opposite.

    :param owner: the object's owner, to whom nothing has to be granted, and whose
        privileges ``found`` leaves out.
    """
    wanted = [grant for grant in wanted if grant.role != owner]
    # what operations have in common, and the privileges of each role
    changes: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for change, role, privilege in _changes(list(found), wanted):
        changes.setdefault(change, {}).setdefault(role, []).append(privilege)
    operations: list[MigrateOperation] = []
    order = {privilege: index for index, privilege in enumerate(ops.PRIVILEGES)}
    for change in sorted(changes, key=lambda change: (*change[:3], *map(str, change))):
        grant, _, column, option, before, grantor = change
        roles: dict[tuple[str, ...], list[str]] = {}
        for role, privileges in sorted(changes[change].items()):
            held = tuple(sorted(privileges, key=lambda each: order.get(each, 99)))
            roles.setdefault(held, []).append(role)
        for held, grantees in roles.items():
            operations.append(
                (ops.GrantPrivilegesOp if grant else ops.RevokePrivilegesOp)(
                    name,
                    held,
                    grantees,
                    schema=schema,
                    object_type=object_type,
                    columns=columns or ([column] if column else []),
                    grant_option=option,
                    granted_by=grantor,
                    before=before,
                )
            )
    return operations


def _changes(
    found: list[Grant], wanted: Iterable[Grant]
) -> Iterable[tuple[tuple[Any, ...], str, str]]:
    """Yield each privilege to revoke or to grant: how, the role, and the privilege.

    How is (grant, whole table, column, grant option, option before, grantor). Columns
    come first: revoking from the table would revoke from its columns, too.
    """
    wants = {grant[:3] for grant in wanted}
    for grant in found:
        how = (False, grant.column is None, grant.column or "")
        if grant[:3] not in wants:
            how_before = (False, grant.grantable, grant.grantor)
        elif grant.grantable:
            how_before = (True, True, grant.grantor)
        else:
            continue
        yield (*how, *how_before), grant.role, grant.privilege
    for role, privilege, column in wants - {grant[:3] for grant in found}:
        how = (True, column is None, column or "")
        yield (*how, False, False, None), role, privilege
