"""Identity: which types can hold a tenant, and the one form that it has in each.

What tells tenants apart is text: the name of a role, or a setting. An integer or a UUID
has many texts, ``'1'`` and ``'01'``, which would be tenants of their own that use the
same rows. So each value has one text, the one that PostgreSQL prints: the canonical
form.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import TypeDecorator, TypeEngine

from .exceptions import InvalidTenant
from .policies import DIALECT
from .tenancy import TenantId, tenant_text


class TenantType(NamedTuple):
    """How the tenant's text becomes comparable with a column.

    :param cast: ``""`` for text, otherwise as in ``"::integer"``.
    :param bytewise: whether the column has a collation of its own, under which texts
        that differ could be equal.
    """

    cast: str
    bytewise: bool = False


#: Casts by the names that types have in DDL.
_CASTS = {
    "text": "",
    "varchar": "",
    "character varying": "",
    "smallint": "::smallint",
    "int2": "::smallint",
    "integer": "::integer",
    "int": "::integer",
    "int4": "::integer",
    "bigint": "::bigint",
    "int8": "::bigint",
    "uuid": "::uuid",
}

#: Every cast of a tenant column.
CASTS = tuple(dict.fromkeys(_CASTS.values()))

_TEXT_ONLY = frozenset({""})

_RANGES = {"::smallint": 15, "::integer": 31, "::bigint": 63}

_DDL = re.compile(
    r"(?:pg_catalog\.)?(?P<name>[a-z0-9 ]+?)( ?\(\d+\))?( collate (?P<collation>.+))?",
    re.IGNORECASE,
)

# They compare by bytes, whatever the locale.
_BYTEWISE_COLLATIONS = (None, "default", "C", "POSIX", "ucs_basic")

# What PostgreSQL reads as a number: src/backend/utils/adt/numutils.c. Before 16 it took
# decimal digits only, and no underscores, but servers are upgraded.
_SPACE = " \t\n\v\f\r"
_INTEGER = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>(?:_?[0-9a-fA-F])+)|0[oO](?P<oct>(?:_?[0-7])+)"
    r"|0[bB](?P<bin>(?:_?[01])+)|(?P<dec>[0-9](?:_?[0-9])*))"
)
_BASES = {"hex": 16, "oct": 8, "bin": 2, "dec": 10}
# The same for a UUID: string_to_uuid() in src/backend/utils/adt/uuid.c.
_UUID = re.compile(r"(\{)?(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}(?(1)\})")


def tenant_type(type_: TypeEngine[Any]) -> TenantType | None:
    """Judge a column's type by what PostgreSQL gets: variants and decorators resolved,
    and a domain by its base type.

    CHAR pads with spaces and CITEXT folds case, so that tenants that differ would be
    equal; an enum, or a number with fractions, cannot be compared with a tenant.

    :return: ``None`` for a type that cannot hold a tenant.
    """
    impl = _resolved(type_)
    if isinstance(impl, postgresql.DOMAIN):
        base = tenant_type(sqltypes.to_instance(impl.data_type))
        if base is None or base.cast:
            return base
        return TenantType("", base.bytewise or _may_fold(impl.collation))
    # one that is called "text" looks like it; SQLAlchemy refuses that only from 2.1 on
    if isinstance(impl, postgresql.ENUM):
        return None
    try:
        # the type itself: how values are bound, which is what the implementation is
        # for, does not tell CHAR from VARCHAR
        ddl = type_.compile(dialect=DIALECT)
    except SQLAlchemyError:  # it has no DDL
        return None
    found = _DDL.fullmatch(ddl)
    cast = _CASTS.get(found["name"].lower()) if found else None
    if found is None or cast is None:
        return None
    return TenantType(cast, _may_fold(found["collation"]))


def tenant_collation(type_: TypeEngine[Any]) -> str | None:
    """Return the collation that a type names, its own or that of its domain."""
    impl = _resolved(type_)
    collation: str | None = getattr(impl, "collation", None)
    if collation is None and isinstance(impl, postgresql.DOMAIN):
        return tenant_collation(sqltypes.to_instance(impl.data_type))
    return collation


def _resolved(type_: TypeEngine[Any]) -> Any:
    impl: Any = type_.dialect_impl(DIALECT)
    while isinstance(impl, TypeDecorator):
        impl = impl.impl_instance
    return impl


def _may_fold(collation: str | None) -> bool:
    if collation is not None:
        collation = collation.strip('"')
    return collation not in _BYTEWISE_COLLATIONS


def require_canonical(
    tenant: TenantId, casts: frozenset[str], *, held: bool = True
) -> None:
    """Refuse a tenant whose text is not the canonical form of its value.

    :param casts: those of the columns that hold tenants; without any, nothing is known.
    :param held: also refuse a tenant that none of these columns can hold.
    :raises InvalidTenant: with the canonical form.
    """
    if casts <= _TEXT_ONLY:
        return
    text = tenant_text(tenant)
    canonical = _another_form(text, casts)
    if canonical is not None and canonical != text:
        raise InvalidTenant(
            f"tenant {tenant!r} is another spelling of {canonical!r}, which is the "
            f"form that PostgreSQL prints; there is no tenant of another form, because "
            f"it would use the same rows: pass {canonical!r}",
            tenant=tenant,
        )
    if held and canonical is None and "" not in casts:
        types = " or ".join(sorted(cast.removeprefix("::").upper() for cast in casts))
        raise InvalidTenant(
            f"tenant {tenant!r} cannot be in a tenant column of these models, which "
            f"is {types}",
            tenant=tenant,
        )


def is_canonical(text: str, casts: frozenset[str]) -> bool:
    """Whether a tenant's text passes :func:`require_canonical`."""
    return _another_form(text, casts) in (text, None if "" in casts else text)


@lru_cache(maxsize=1024)
def _another_form(text: str, casts: frozenset[str]) -> str | None:
    """Return a canonical form that differs from ``text``, ``text`` itself where a type
    prints it as it is, or ``None`` where no type but text can hold it."""
    forms = {canonical_text(text, cast) for cast in casts if cast} - {None}
    return min(forms - {text} or forms, default=None)  # type: ignore[type-var]


def canonical_text(text: str, cast: str) -> str | None:
    """Return what PostgreSQL prints for a text that it read as another type.

    :param cast: the type, as in ``"::integer"``; ``""`` for text.
    :return: ``None`` for what the type cannot hold.
    """
    if cast == "":
        return text
    if cast == "::uuid":
        if not _UUID.fullmatch(text):
            return None
        digits = re.sub("[{}-]", "", text).lower()
        return "-".join(
            (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        )
    found = _INTEGER.fullmatch(text.strip(_SPACE))
    if found is None:
        return None
    kind, base = next((k, b) for k, b in _BASES.items() if found[k] is not None)
    digits = found[kind].replace("_", "").lstrip("0") or "0"
    if len(digits) > 64:  # more than any type holds, and than Python reads
        return None
    value = int(found["sign"] + digits, base)
    limit = 1 << _RANGES[cast]
    return str(value) if -limit <= value < limit else None
