"""Checks: what makes the isolation of tenants void, found in the catalog.

A few queries for any number of tables, and any login may run them.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData

from ..tenancy import Isolation, Tenancy
from .check_roles import check_database, check_login, check_roles
from .check_tables import (
    check_around,
    check_definers,
    check_distributed,
    check_owners,
    check_policies_of_others,
    check_privileges,
    check_readers,
    check_tables,
    check_tenants,
    check_unmarked,
)
from .checked import Checked
from .findings import Finding
from .hardening import check_hardening


def run_checks(
    connection: Connection,
    tenancy: Tenancy,
    metadata: MetaData | None,
    isolation: Isolation,
    schema: str | None,
    *,
    allow_statements: bool = False,
) -> list[Finding]:
    """Return what is wrong, errors first.

    :param metadata: the models; without them, the tables that have tenant policies in
        the database are checked, and one that lost all of them goes unnoticed.
    :param schema: where sessions find the tables of models that name no schema;
        ``None`` for the first of the login's search path.
    :param allow_statements: whether sessions refuse statements by their first word, and
        what that needs is checked, too.
    """
    checked = Checked(connection, tenancy, metadata, isolation, schema)
    findings = [finding for check in _CHECKS for finding in check(checked)]
    if allow_statements:
        owners = sorted({table.owner for _, table, _ in checked.tables()})
        findings += check_hardening(connection, tenancy, owners)
    findings.sort(key=lambda finding: (finding.severity, finding.object))
    return list(dict.fromkeys(findings))


_CHECKS = (
    check_login,
    check_roles,
    check_database,
    check_distributed,
    check_tables,
    check_policies_of_others,
    check_privileges,
    check_unmarked,
    check_around,
    check_definers,
    check_tenants,
    check_readers,
    check_owners,
)
