"""Options: the arguments of :meth:`.PostgresManager.from_engine`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import Engine

from .drivers import driver_of
from .exceptions import ScopeError

_C = TypeVar("_C")


def require_engines(engine: Engine, admin_engine: Engine) -> None:
    for what, each in (("engine", engine), ("admin_engine", admin_engine)):
        if not isinstance(each, Engine):
            raise TypeError(
                f"{what} is an Engine, as create_engine() makes it, not {each!r}; "
                f"for an AsyncEngine import the manager from "
                f"sqlalchemy_tenants.aio.managers"
            )
        if each.dialect.name != "postgresql":
            raise ScopeError(
                f"tenants need PostgreSQL; this engine's dialect is "
                f"{each.dialect.name!r}"
            )
        driver_of(each.dialect).register(each.dialect)


# Arguments of sessions that are the manager's own.
_OWN_OPTIONS = frozenset(
    {
        "bind",
        "scope",
        "tenant",
        "isolation",
        "schema",
        "tenancy",
        "context",
        "settings",
        "allow_statements",
    }
)


def require_session_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"session_options are arguments of a session, as in "
            f"{{'expire_on_commit': False}}, not {options!r}"
        )
    for name in options:
        if not isinstance(name, str) or name in _OWN_OPTIONS:
            raise ValueError(
                f"session_options cannot have {name!r}, only further arguments of "
                f"sqlalchemy.orm.Session"
            )
    return dict(options)


# Arguments of earlier versions.
_RENAMED = {"schema_name": "schema"}


def require_known(unknown: Mapping[str, object]) -> None:
    """Refuse arguments of :meth:`PostgresManager.from_engine` that are none.

    :raises TypeError: there is one.
    """
    for name in unknown:
        advice = f"; it is called {_RENAMED[name]!r} now" if name in _RENAMED else ""
        raise TypeError(
            f"from_engine() got an unexpected keyword argument {name!r}{advice}"
        )


def require_session_class(given: type[_C], base: type[_C]) -> type[_C]:
    """Return an argument ``session_class``.

    :raises TypeError: it is no subclass of ``base``.
    """
    if not isinstance(given, type) or not issubclass(given, base):
        raise TypeError(
            f"session_class is a subclass of {base.__name__}, not {given!r}; another "
            f"library's session becomes one by inheriting from both, as in "
            f"class Own({base.__name__}, Session)"
        )
    return given
