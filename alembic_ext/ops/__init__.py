"""Operations: what a migration does, its SQL, its directive, and its reverse.

``roles`` and ``tenants`` belong to the cluster, ``tenancy`` is once in a database,
``tables`` and ``privileges`` are for each object. As source in :mod:`..render`, when in
:mod:`..compare`.
"""

from .base import TenancyOp, taken_directives
from .notes import OWNED_COMMENT
from .privileges import (
    OBJECT_TYPES,
    PRIVILEGES,
    GrantPrivilegesOp,
    RevokePrivilegesOp,
)
from .roles import (
    AlterGroupRoleOp,
    CreateGroupRoleOp,
    DropGroupRoleOp,
    GrantMembershipOp,
    RevokeMembershipOp,
)
from .tables import (
    AlterPolicyOp,
    AlterTableOwnerOp,
    CreatePolicyOp,
    DisableRLSOp,
    DropPolicyOp,
    EnableRLSOp,
    RowSecurityOp,
)
from .tenancy import CreateTenancyOp, DropTenancyOp, ReplaceTenantFunctionOp
from .tenants import (
    CreateTenantRoleOp,
    DropTenantRoleOp,
    GrantTenantRoleOp,
    RevokeTenantRoleOp,
)

__all__ = [
    "OBJECT_TYPES",
    "OWNED_COMMENT",
    "PRIVILEGES",
    "AlterGroupRoleOp",
    "AlterPolicyOp",
    "AlterTableOwnerOp",
    "CreateGroupRoleOp",
    "CreatePolicyOp",
    "CreateTenancyOp",
    "CreateTenantRoleOp",
    "DisableRLSOp",
    "DropGroupRoleOp",
    "DropPolicyOp",
    "DropTenancyOp",
    "DropTenantRoleOp",
    "EnableRLSOp",
    "GrantMembershipOp",
    "GrantPrivilegesOp",
    "GrantTenantRoleOp",
    "ReplaceTenantFunctionOp",
    "RevokeMembershipOp",
    "RevokePrivilegesOp",
    "RevokeTenantRoleOp",
    "RowSecurityOp",
    "TenancyOp",
    "taken_directives",
]
