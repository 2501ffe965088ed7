"""Configuration: the names that the database and the application agree on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypeAlias
from uuid import UUID

from sqlalchemy import MetaData
from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

from .arguments import (
    MAX_IDENTIFIER_BYTES,
    require_flag,
    require_name,
    require_names,
)
from .exceptions import InvalidTenant

TenantId: TypeAlias = str | int | UUID
"""What identifies a tenant; the database sees its text form."""

Isolation: TypeAlias = Literal["role", "shared"]
"""``"role"``: a database role per tenant. ``"shared"``: one role, and the tenant
in a setting."""

#: Name of the function, in the tenancy schema, that every policy asks.
FUNCTION_NAME = "current_tenant"

#: Name of the function, likewise, that answers with a value of the context.
CONTEXT_FUNCTION_NAME = "context_value"

#: Our functions and the type of their argument, if they have one.
FUNCTIONS = {FUNCTION_NAME: "", CONTEXT_FUNCTION_NAME: "text"}

_INFO_KEY = "tenancy"
# PostgreSQL's rule for a custom parameter: two or more simple names with dots
# (src/backend/utils/misc/guc.c, valid_custom_variable_name).
_SETTING = re.compile(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)+")
# What no role can be called. SET ROLE "none" is RESET ROLE, quoted or not.
_NO_ROLES = ("none", "public")
_ROLE_FIELDS = ("tenants_role", "shared_role", "admin_role")
_NAMES = ("role_prefix", *_ROLE_FIELDS, "schema", "setting")


@dataclass(frozen=True, kw_only=True)
class Tenancy:
    """Names of roles, schema and setting, and what is declared statically.

    The defaults suit one database in a cluster. Roles belong to the cluster: where a
    database's tenants are not those of the others, :meth:`named` gives it names of its
    own. Of the prefix and the group roles, all are renamed or none.

    Stored per :class:`~sqlalchemy.schema.MetaData`, either
    ``MetaData(info={"tenancy": Tenancy(...)})`` or :meth:`bind`.

    :param role_prefix: the role of tenant ``acme`` is this prefix and ``acme``.
    :param tenants_role: group role of all tenants. Policies name it and it holds
        the privileges on tables; nobody acts as it.
    :param shared_role: the role that ``isolation="shared"`` acts as.
    :param admin_role: the role that an admin session acts as.
    :param schema: schema of the functions ``current_tenant()`` and
        ``context_value()``.
    :param setting: custom parameter that carries the tenant of the shared and of
        the admin role.
    :param force: whether tables get ``FORCE ROW LEVEL SECURITY``, which subjects
        their owner to the policies, too.
    :param tenants: the complete list of tenants, compared by autogenerate; ``None``
        where tenants come and go at run time.
    :param logins: application logins that may act as the tenants in ``tenants``; with
        ``None`` the role that migrates may, and autogenerate compares no logins.
    :param owners: roles that may own tables of tenants, beside the one that migrates.
        They become admins, because ``FORCE`` confines owners, too.
    :raises TypeError: for a value of another type.
    :raises ValueError: for a name that PostgreSQL would refuse or cut, or for names
        that collide.
    """

    role_prefix: str = "tenant_"
    tenants_role: str = "tenants"
    shared_role: str = "tenants_shared"
    admin_role: str = "tenants_admin"
    schema: str = "tenancy"
    setting: str = "tenancy.tenant"
    force: bool = True
    # may be long, and a session's scope is looked up by the hash
    tenants: Collection[TenantId] | None = field(default=None, hash=False)
    logins: Collection[str] | None = None
    owners: Collection[str] = ()

    def __post_init__(self) -> None:
        self._require_valid()
        self._require_renamed_as_a_whole()

    @classmethod
    def named(cls, name: str, **kw: Any) -> Self:
        """Return a configuration whose names all begin with one name::

            Tenancy.named("shop", tenants=["acme", "globex"])

        The role of tenant ``acme`` is then ``shop_tenant_acme``, the group roles are
        ``shop_tenants``, ``shop_tenants_shared`` and ``shop_tenants_admin``, the schema
        is ``shop_tenancy``, and the setting is ``shop_tenancy.tenant``.

        :param name: lower-case letters, digits and underscores, as in ``"shop"``.
        :param kw: further fields, or other names.
        :raises TypeError: ``name`` is not a string.
        :raises ValueError: for another name.
        """
        if not re.fullmatch("[a-z_][a-z0-9_]*", require_name("name", name)):
            raise ValueError(
                f"name {name!r}: roles, schema and setting are named for it; it has "
                f"lower-case letters, digits and underscores only, as in 'shop'"
            )
        names = {field: f"{name}_{getattr(_DEFAULT, field)}" for field in _NAMES}
        return cls(**{**names, **kw})

    @classmethod
    def recorded(cls, **names: str) -> Self:
        """Return the names that a migration was written with.

        Earlier versions took those that were renamed in part; their migrations still
        run.

        :raises ValueError: for a name that PostgreSQL would refuse.
        """
        tenancy = object.__new__(cls)
        for each in fields(cls):
            value = names.get(each.name, each.default)
            object.__setattr__(tenancy, each.name, value)
        tenancy._require_valid()
        return tenancy

    def _require_valid(self) -> None:
        require_flag("force", self.force)
        self._require_valid_names()
        self._require_valid_setting()
        self._require_valid_collections()

    def _require_valid_names(self) -> None:
        for what in (*_ROLE_FIELDS, "role_prefix", "schema"):
            name = require_name(what, getattr(self, what))
            object.__setattr__(self, what, name)
            if name.startswith("pg_"):
                raise ValueError(
                    f"{what} {name!r}: PostgreSQL reserves the prefix 'pg_'"
                )
            # "PUBLIC" is no reserved name, but everybody would take it for one
            if what in _ROLE_FIELDS and name.lower() in _NO_ROLES:
                raise ValueError(
                    f"{what} {name!r}: PostgreSQL has no role of that name; choose "
                    f"another one"
                )
        for name in (*_NO_ROLES, "pg_"):
            if name.startswith(self.role_prefix) and name != self.role_prefix:
                raise ValueError(
                    f"role_prefix {self.role_prefix!r}: a tenant's role could be "
                    f"{name!r}, which PostgreSQL reserves; choose a longer prefix"
                )
        if len(set(self.group_roles)) != len(self.group_roles):
            raise ValueError(f"group roles need distinct names: {self.group_roles}")
        for role in self.group_roles:
            if role.startswith(self.role_prefix):
                raise ValueError(
                    f"role {role!r} begins with the prefix of tenant roles, "
                    f"{self.role_prefix!r}, so that it would be the role of tenant "
                    f"{self.tenant_of(role)!r}; choose another name, or a longer "
                    f"prefix, as in {self.role_prefix.strip('_') + '_tenant_'!r}"
                )

    def _require_valid_setting(self) -> None:
        if not isinstance(self.setting, str):
            raise TypeError(
                f"setting is a str, as in 'tenancy.tenant', not {self.setting!r}"
            )
        parts = self.setting.split(".")
        if (
            not _SETTING.fullmatch(self.setting)
            or RESERVED_WORDS.intersection(parts)
            or max(map(len, parts)) > MAX_IDENTIFIER_BYTES
        ):
            raise ValueError(
                f"setting {self.setting!r} must be lower-case names joined by a dot, "
                f"as in 'tenancy.tenant', none of them a reserved word or longer than "
                f"{MAX_IDENTIFIER_BYTES} bytes"
            )

    def _require_valid_collections(self) -> None:
        for what in ("tenants", "logins", "owners"):
            value = getattr(self, what)
            if isinstance(value, str | bytes):
                raise ValueError(
                    f"tenants, logins and owners are collections, not a string; {what} "
                    f"is {value!r}"
                )
            if not isinstance(value, Iterable) and (
                value is not None or what == "owners"
            ):
                raise TypeError(f"{what} is a collection, not {value!r}")
        # hashable and comparable whatever collection was given
        for what, names in (("login", "logins"), ("owner", "owners")):
            if getattr(self, names) is not None:
                value = tuple(require_names(what, getattr(self, names)))
                object.__setattr__(self, names, value)
                self._require_not_ours(what, names, value)
        for role in set(self.logins or ()) & set(self.owners):
            raise ValueError(
                f"{role!r} is among logins and among owners: an owner becomes an admin "
                f"of tenants, which a login of the application must not be; give the "
                f"tables an owner of their own"
            )
        if self.tenants is not None:
            object.__setattr__(self, "tenants", tuple(self.tenants))
            known: dict[str, TenantId] = {}
            for tenant in self.tenants:
                self._require_another(tenant, known)

    def _require_not_ours(self, what: str, names: str, roles: Iterable[str]) -> None:
        """Refuse to let a role of ours act as tenants, or as the admin role."""
        for role in roles:
            if role in self.group_roles or role.startswith(self.role_prefix):
                raise ValueError(
                    f"{names} has {role!r}, which is a group role or a tenant's and "
                    f"so no {what}: what it may act as, tenants could"
                )

    def _require_another(self, tenant: TenantId, known: dict[str, TenantId]) -> None:
        text = self.tenant_of(self.role_for(tenant))
        if text in known:
            raise InvalidTenant(
                f"tenants name {text!r} twice, as {known[text]!r} and as {tenant!r}: "
                f"that is one tenant",
                tenant=tenant,
            )
        known[text] = tenant

    def _require_renamed_as_a_whole(self) -> None:
        """Refuse to rename some roles, and to leave others common with the databases of
        the cluster that have the default names."""
        prefix = _DEFAULT.role_prefix
        renamed = self.non_defaults("role_prefix", *_ROLE_FIELDS)
        common = {
            what: getattr(self, what)
            for what in _ROLE_FIELDS
            if getattr(self, what) in _DEFAULT.group_roles
            or getattr(self, what).startswith(prefix)
        }
        # where one begins with the other, a role could be a tenant's of both
        if self.role_prefix.startswith(prefix) or prefix.startswith(self.role_prefix):
            common["role_prefix"] = self.role_prefix
        if not renamed or not common:
            return
        own = [value for what, value in renamed.items() if what not in common]
        name = own[0].strip("_") if own else "shop"
        others = {what: f"{getattr(_DEFAULT, what)}_{name}" for what in common}
        if "role_prefix" in others:
            others["role_prefix"] = f"{name}_tenant_"
        raise ValueError(
            f"Tenancy({_arguments(renamed)}) has roles in common with each database of "
            f"the cluster that has the default names: {_arguments(common)}; a login of "
            f"that database could read this one. Rename the prefix and all group "
            f"roles, as Tenancy.named('shop') does. An application that runs with "
            f"this configuration goes on with Tenancy("
            f"{_arguments({**renamed, **others})}), and alembic revision --autogenerate"
        )

    @property
    def group_roles(self) -> tuple[str, str, str]:
        """The three group roles: tenants, shared, admin."""
        return (self.tenants_role, self.shared_role, self.admin_role)

    def role_for(self, tenant: TenantId) -> str:
        """Return the name of a tenant's role.

        Distinct tenants have distinct roles, because nothing is folded or cut.

        :raises InvalidTenant: see :func:`tenant_text`; or the name would have more
            than 63 bytes.
        """
        role = self.role_prefix + tenant_text(tenant)
        size = len(role.encode())
        if size > MAX_IDENTIFIER_BYTES:
            limit = MAX_IDENTIFIER_BYTES - len(self.role_prefix.encode())
            raise InvalidTenant(
                f"tenant {tenant!r} has {size - len(self.role_prefix.encode())} bytes, "
                f"but a tenant with a role of its own has at most {limit}: PostgreSQL "
                f"cuts role names at {MAX_IDENTIFIER_BYTES} bytes. Use a shorter "
                f'identifier, or isolation="shared", which has no limit',
                tenant=tenant,
            )
        return role

    def tenant_of(self, role: str) -> str:
        """Return the tenant of a tenant role: the inverse of :meth:`role_for`."""
        return role.removeprefix(self.role_prefix)

    def bind(self, metadata: MetaData) -> MetaData:
        """Make this the configuration of ``metadata``, and return that.

        :raises TypeError: ``metadata`` is something else.
        """
        _require_metadata(metadata)
        metadata.info[_INFO_KEY] = self
        return metadata

    @classmethod
    def of(cls, metadata: MetaData) -> Tenancy:
        """Return the configuration of ``metadata``, or the default one.

        :raises TypeError: ``metadata``, or ``metadata.info["tenancy"]``, is something
            else.
        """
        _require_metadata(metadata)
        tenancy = metadata.info.get(_INFO_KEY)
        if tenancy is None:
            return _DEFAULT
        if not isinstance(tenancy, cls):
            raise TypeError(
                f'MetaData.info["{_INFO_KEY}"] is a {type(tenancy).__name__}, '
                f"not a Tenancy"
            )
        return tenancy

    @classmethod
    def is_bound(cls, metadata: MetaData) -> bool:
        """Whether ``metadata`` was given a configuration explicitly."""
        _require_metadata(metadata)
        return _INFO_KEY in metadata.info

    def non_defaults(self, *names: str) -> dict[str, Any]:
        """Return those of the named fields whose values are not the defaults."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name in names and getattr(self, each.name) != each.default
        }

    @classmethod
    def given(cls, tenancy: Tenancy | None) -> Tenancy:
        """Return an argument ``tenancy``, or the default configuration for ``None``.

        :raises TypeError: it is something else.
        """
        if tenancy is None:
            return _DEFAULT
        if not isinstance(tenancy, cls):
            raise TypeError(f"tenancy is a Tenancy or None, not {tenancy!r}")
        return tenancy


# made without a look at the default names, which it is
_DEFAULT = Tenancy.recorded()


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _require_metadata(metadata: object) -> None:
    if not isinstance(metadata, MetaData):
        raise TypeError(
            f"metadata is a MetaData, as in Base.metadata, not {metadata!r}"
        )


def tenant_text(tenant: TenantId) -> str:
    """Return the text that stands for a tenant in the database.

    A string stands for itself, an ``int`` for its decimal digits, a ``UUID`` for
    its canonical lower-case form.

    :raises InvalidTenant: wrong type (``bool`` included), empty, with a NUL
        character, or not encodable as UTF-8.
    """
    if isinstance(tenant, bool) or not isinstance(tenant, str | int | UUID):
        raise InvalidTenant(
            f"a tenant is a str, int or UUID, not {type(tenant).__name__}: {tenant!r}",
            tenant=tenant,
        )
    # the unbound methods, because a (str, Enum) member prints as "Class.member"
    if isinstance(tenant, str):
        text = str.__str__(tenant)
    elif isinstance(tenant, int):
        try:
            text = int.__repr__(tenant)
        except ValueError as error:  # more digits than Python prints
            raise InvalidTenant(
                f"a tenant cannot be an int of so many digits: {error}", tenant=tenant
            ) from error
    else:
        text = str(tenant)
    if not text:
        raise InvalidTenant("a tenant cannot be empty", tenant=tenant)
    if "\0" in text:
        raise InvalidTenant(
            f"tenant {tenant!r} has a NUL character, which PostgreSQL cannot store",
            tenant=tenant,
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTenant(
            f"tenant {tenant!r} cannot be encoded as UTF-8: {error.reason}",
            tenant=tenant,
        ) from error
    return text
