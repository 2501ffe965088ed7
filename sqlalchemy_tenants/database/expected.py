"""What must be there, as data: for one configuration and the marks of its models.

Autogenerate turns a difference from the catalog into operations, ``check()`` into
findings. Whoever asks what is right asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..declare import Mark, TenantTable
from ..policies import (
    OWN_POLICIES,
    TENANT_PRIVILEGES,
    Policy,
    context_function_body,
    printed,
    quote_qualified,
    tenant_function_body,
)
from ..tenancy import CONTEXT_FUNCTION_NAME, FUNCTION_NAME, FUNCTIONS, Tenancy
from .catalog import Catalog, Defaults, Grant, Membership, RoleState, TableState

#: Attributes of a group role, by their names in :class:`.catalog.RoleState`.
GROUP_ROLE_ATTRIBUTES = {
    "superuser": False,
    "bypass_rls": False,
    "login": False,
    "inherit": True,
    "create_role": False,
    "create_db": False,
    "replication": False,
}

#: Attributes of a tenant's role. A tenant may have a login of its own.
TENANT_ROLE_ATTRIBUTES = {
    name: value for name, value in GROUP_ROLE_ATTRIBUTES.items() if name != "login"
}


def altered_attributes(state: RoleState, wanted: dict[str, bool]) -> dict[str, bool]:
    """Return the wanted attributes that a role does not have."""
    return {
        name: value
        for name, value in wanted.items()
        if getattr(state, name) is not value
    }


@dataclass(frozen=True)
class Expected:
    """What a configuration needs, whatever its models are."""

    tenancy: Tenancy

    @cached_property
    def functions(self) -> dict[str, str]:
        """What ``pg_get_functiondef`` prints for our functions, 15 to 18 alike."""
        return {
            FUNCTION_NAME: self._function(
                FUNCTION_NAME, tenant_function_body(self.tenancy)
            ),
            CONTEXT_FUNCTION_NAME: self._function(
                CONTEXT_FUNCTION_NAME, context_function_body(self.tenancy)
            ),
        }

    def _function(self, name: str, body: str) -> str:
        tag = "$function"
        while tag in body:
            tag += "x"
        argument = f"name {FUNCTIONS[name]}" if FUNCTIONS[name] else ""
        return (
            f"CREATE OR REPLACE FUNCTION {quote_qualified(self.tenancy.schema, name)}"
            f"({argument})\n"
            " RETURNS text\n"
            " LANGUAGE plpgsql\n"
            " STABLE PARALLEL SAFE\n"
            f"AS {tag}${body}{tag}$\n"
        )

    @property
    def grantees(self) -> tuple[str, str]:
        """The group roles that hold privileges."""
        return (self.tenancy.tenants_role, self.tenancy.admin_role)

    def group_of(self, role: str) -> str | None:
        """Return the group role that a group role is a member of."""
        shared = role == self.tenancy.shared_role
        return self.tenancy.tenants_role if shared else None

    def grants(self, mark: Mark | None) -> frozenset[Grant]:
        """Return what our roles hold on a table with that mark."""
        privileges = () if mark is None else mark.privileges
        return frozenset(Grant(r, p) for r in self.grantees for p in privileges)

    def sequence_grants(self, mark: Mark | None) -> frozenset[Grant]:
        """Return what our roles hold on the sequences of a table's serial columns."""
        if mark is None or "INSERT" not in mark.privileges:
            return frozenset()
        return self.each("USAGE")

    def each(self, privilege: str) -> frozenset[Grant]:
        """Return the grants of one privilege: USAGE on schemas, EXECUTE."""
        return frozenset(Grant(role, privilege) for role in self.grantees)

    def is_group(self, role: str) -> bool:
        """Whether a role is one of the group roles."""
        return role in self.tenancy.group_roles

    def is_tenant(self, role: str) -> bool:
        """Whether a role is a tenant's by its name."""
        return role.startswith(self.tenancy.role_prefix)

    def is_ours(self, role: str) -> bool:
        """Whether a role is a group role or a tenant's."""
        return self.is_group(role) or self.is_tenant(role)

    def reaches_tenants(self, role: str) -> bool:
        """Whether a session of a tenant has what is granted to a role, or may have
        it."""
        return role == "public" or self.is_ours(role)

    def uses(self, table: TableState) -> bool:
        """Whether a policy or privilege of a group role is on the table."""
        roles = set(self.tenancy.group_roles)
        return any(grant.role in roles for grant in table.grants) or any(
            roles & set(policy.roles or ()) for policy in table.policies.values()
        )

    def earlier_roles(self, table: TableState) -> frozenset[str]:
        """Return the group roles of an earlier configuration: our policies name them,
        and they hold the privileges of tenants."""
        named = {
            role
            for name in OWN_POLICIES
            if name in table.policies
            for role in table.policies[name].roles or ()
            if role != "public" and not self.is_ours(role)
        }
        return frozenset(
            role
            for role in named
            if {Grant(role, privilege) for privilege in TENANT_PRIVILEGES}
            <= table.grants
        )

    def surplus_memberships(self, database: Catalog) -> Iterator[Membership]:
        """Yield memberships of our roles in our roles that give more than the models
        say."""
        for membership in database.memberships:
            group, member = membership.group, membership.member
            if self.is_ours(group) and group != (
                self.group_of(member)
                if self.is_group(member)
                else self.tenancy.tenants_role
            ):
                yield membership

    def surplus_defaults(self, defaults: Defaults) -> Defaults:
        """Return the default privileges that our roles get on what others create."""
        surplus = {
            key: frozenset(grant for grant in grants if self.is_ours(grant.role))
            for key, grants in defaults.items()
        }
        return {key: grants for key, grants in surplus.items() if grants}


def altered_parts(found: Policy, wanted: Policy) -> dict[str, tuple[Any, Any]]:
    """Return which parts of a policy differ, old and new, expressions aside."""
    parts = {
        part: (getattr(found, part), getattr(wanted, part))
        for part in ("command", "permissive", "roles")
    }
    if "public" in (wanted.roles or ()) and found.roles == ("public",):
        del parts["roles"]  # the server ignores other roles beside PUBLIC
    return {part: pair for part, pair in parts.items() if pair[0] != pair[1]}


def printed_policy(
    policy: Policy, mark: TenantTable, tenancy: Tenancy, visible: bool
) -> frozenset[str]:
    """Return how PostgreSQL may print the expression of one of our own policies.

    :param visible: whether the search path leads to our function.
    """
    return frozenset().union(
        *(
            printed(
                policy.name,
                mark.column,
                mark.cast,
                tenancy,
                bytewise=mark.bytewise,
                visible=each,
            )
            for each in {False, visible}
        )
    )


def altered_policies(
    table: TableState, mark: TenantTable, tenancy: Tenancy, visible: bool
) -> Iterator[tuple[Policy, bool]]:
    """Yield the policies of a mark that a table does not have like this, and whether
    each is one of our own; conditions of the user's own are not compared.

    :param visible: whether the search path leads to our function.
    """
    for policy in mark.policies(tenancy):
        is_own = policy.name in OWN_POLICIES
        found = table.policies.get(policy.name)
        if found is None or altered_parts(found, policy):
            yield policy, is_own
        elif is_own:
            texts = printed_policy(policy, mark, tenancy, visible)
            if not {found.using, found.with_check} <= texts:
                yield policy, is_own


def readers(table: TableState, expected: Expected) -> set[str]:
    """Return the roles that hold SELECT on a table and are not ours, its owner and
    PUBLIC aside."""
    return {
        grant.role
        for grant in table.grants
        if grant.privilege == "SELECT"
        and grant.role != "public"
        and not expected.is_ours(grant.role)
    }


def admitted(policies: Iterable[Policy]) -> set[str]:
    """Return the roles to which some permissive policy shows rows."""
    return {
        role
        for policy in policies
        if policy.permissive and policy.command in ("ALL", "SELECT")
        for role in policy.roles or ()
    }
