"""Values: the context and the settings that an application adds to each transaction of
a session.

Both are parameters of PostgreSQL and go with ``BEGIN``, in the one text that enters the
scope. Loaded by the first session that has some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

from .arguments import MAX_IDENTIFIER_BYTES, require_text
from .scope import Scope
from .tenancy import Tenancy, TenantId

#: What a session knows of the request that it works for, as in ``{"user_id": 7}``.
Context: TypeAlias = Mapping[str, str | int | bool | UUID | None]

#: Parameters of PostgreSQL, as in ``{"statement_timeout": "5s"}``.
Parameters: TypeAlias = Mapping[str, str | int | float | bool]

#: The same, or a function of the tenant; an admin session across tenants has ``None``.
Settings: TypeAlias = Parameters | Callable[[Any], Parameters]

_CONTEXT_NAME = re.compile("[a-z_][a-z0-9_]*")
# PostgreSQL's rule, see Tenancy.setting; its own names have capitals, too (DateStyle).
_PARAMETER = re.compile(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)*", re.IGNORECASE)

_SCOPE = "the scope of the session sets it: give the manager another tenant or schema"
_LITERALS = (
    "it changes how the server reads the text of statements, which the driver relies "
    "on; set it for the engine, in connect_args"
)
_TRANSACTION = (
    "it belongs to the engine or the connection: use isolation_level, "
    "postgresql_readonly and postgresql_deferrable of execution_options()"
)
_AT_CONNECT = (
    "it has an effect only when a connection is made; set it for the login: ALTER ROLE"
)
_SERVER = "only the server sets it; leave it out"

#: Parameters that no session may set, and why.
_REFUSED = {
    "role": _SCOPE,
    "session_authorization": _SCOPE,
    "search_path": _SCOPE,
    "row_security": "with it off, queries fail where a policy would confine them; "
    "leave it out",
    "session_replication_role": "it switches triggers and foreign keys off; let a "
    "superuser do what needs it",
    "event_triggers": "it switches off event triggers, which may protect the "
    "policies; let a superuser do what needs it",
    "standard_conforming_strings": _LITERALS,
    "backslash_quote": _LITERALS,
    "client_encoding": _LITERALS,
    "transaction_isolation": _TRANSACTION,
    "transaction_read_only": _TRANSACTION,
    "transaction_deferrable": _TRANSACTION,
    # SET LOCAL would end before it begins to matter
    "default_transaction_isolation": _TRANSACTION,
    "default_transaction_read_only": _TRANSACTION,
    "default_transaction_deferrable": _TRANSACTION,
    "session_preload_libraries": _AT_CONNECT,
    "local_preload_libraries": _AT_CONNECT,
    "shared_preload_libraries": _AT_CONNECT,
    "is_superuser": _SERVER,
    "in_hot_standby": _SERVER,
    "server_encoding": _SERVER,
    "server_version": _SERVER,
    "server_version_num": _SERVER,
    "seed": "it cannot be read, and so not set back; call setseed()",
}


class Values:
    """The context and the settings of one session.

    :ivar context: the context as it was given, read-only.
    """

    def __init__(
        self, tenancy: Tenancy, context: Context | None, settings: Settings | None
    ) -> None:
        given = dict(_required_mapping("context", context or {}))
        self.context: Context = MappingProxyType(given)
        self._tenancy = tenancy
        self._texts = {
            context_parameter(name, tenancy.setting): _context_text(name, value)
            for name, value in given.items()
        }
        self._ask: Callable[[Any], Parameters] | None = None
        if callable(settings):
            self._ask = settings
        elif settings is not None:
            self._texts |= require_settings(settings, tenancy)

    def added_to(self, scope: Scope) -> Scope:
        """Return a scope with the values, asking the function of the tenant."""
        texts = self._texts
        if self._ask is not None:
            texts = texts | require_settings(self._ask(scope.tenant), self._tenancy)
        return replace(scope, values=tuple(sorted(texts.items())))


def merged_settings(
    tenancy: Tenancy, tenant: TenantId | None, *given: Settings | None
) -> dict[str, str]:
    """Return settings as one mapping; of two for a parameter, the later one counts."""
    merged: dict[str, str] = {}
    for settings in given:
        if callable(settings):
            settings = settings(tenant)
        elif settings is None:
            continue
        merged |= require_settings(settings, tenancy)
    return merged


def require_settings(settings: Parameters, tenancy: Tenancy) -> dict[str, str]:
    """Return the texts of settings, by the names of the parameters in lower case.

    :raises TypeError: not a mapping, or a name or value of another type.
    :raises ValueError: a parameter that is refused.
    """
    settings = _required_mapping("settings", settings)
    return {
        _setting_parameter(name, tenancy.setting): _setting_text(name, value)
        for name, value in settings.items()
    }


def _required_mapping(what: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "close"):
        value.close()  # a coroutine, which nobody will await
    raise TypeError(f"{what} is a mapping of names and values, not {value!r}")


@lru_cache(maxsize=1024)
def context_parameter(name: str, setting: str) -> str:
    """Return the parameter that carries a value of the context.

    :param setting: see :class:`.Tenancy`.
    :raises TypeError: the name is not a string.
    :raises ValueError: for another name.
    """
    prefix, _, tenant = setting.rpartition(".")
    if not isinstance(name, str):
        raise TypeError(f"names of the context are str, not {name!r}")
    if not _CONTEXT_NAME.fullmatch(name) or len(name) > MAX_IDENTIFIER_BYTES:
        raise ValueError(
            f"context {name!r}: a name has lower-case letters, digits and underscores, "
            f"as in 'user_id', and at most {MAX_IDENTIFIER_BYTES} of them"
        )
    if name == tenant:
        raise ValueError(
            f"context {name!r}: parameter {setting} carries the tenant; choose another "
            f"name"
        )
    # the unbound method, because a (str, Enum) member prints as "Class.member"
    return f"{prefix}.{str.__str__(name)}"


def _context_text(name: str, value: object) -> str:
    if value is None:
        return ""  # sent, because it hides a value that the login may bring
    # the unbound methods, as above
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, UUID):
        return UUID.__str__(value)
    if not isinstance(value, str):
        raise TypeError(
            f"context {name!r} is a str, int, bool, UUID or None, not "
            f"{type(value).__name__}: {value!r}"
        )
    if not value:
        raise ValueError(
            f"context {name!r} is empty, which PostgreSQL cannot tell from a value "
            f"that was not given; pass None"
        )
    require_text(f"context {name!r}:", value, "is no value")
    return str.__str__(value)


@lru_cache(maxsize=1024)
def _setting_parameter(name: str, setting: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names of settings are str, not {name!r}")
    parameter = str.lower(name)
    parts = parameter.split(".")
    if not _PARAMETER.fullmatch(name) or max(map(len, parts)) > MAX_IDENTIFIER_BYTES:
        raise ValueError(
            f"settings {name!r} is not the name of a parameter of PostgreSQL, as in "
            f"'statement_timeout'"
        )
    reason = _REFUSED.get(parameter)
    if parameter.startswith(setting.rpartition(".")[0] + "."):
        reason = (
            "parameters of this prefix carry the tenant and the context; pass "
            "context={...}, or choose another prefix"
        )
    if reason is not None:
        raise ValueError(f"settings cannot have {name!r}: {reason}")
    return parameter


def _setting_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return (int if isinstance(value, int) else float).__repr__(value)
    if not isinstance(value, str):
        raise TypeError(
            f"settings {name!r} is a str, int, float or bool, not "
            f"{type(value).__name__}: {value!r}"
        )
    require_text(f"settings {name!r}:", value, "is no value")
    return str.__str__(value)
