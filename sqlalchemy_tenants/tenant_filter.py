"""Logging: records that say which tenant was at work."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event

from .claims import Claim, claim_at_work, watchers
from .tenancy import tenant_text

NOBODY = "-"

# Of a thread, or of a task of asyncio: what is at work, the one used last at the end.
_at_work: ContextVar[tuple[ref[Claim], ...]] = ContextVar("at_work", default=())
# Whose statement the engine executes, or has executed last.
_executing: ContextVar[ref[Claim] | None] = ContextVar("executing", default=None)


class TenantFilter(logging.Filter):
    """Adds ``tenant`` to log records: the tenant of the session at work.

    On a handler, so that it sees the records of all loggers::

        handler.addFilter(TenantFilter())
        handler.setFormatter(logging.Formatter("%(tenant)s %(message)s"))

    It is the tenant's text. ``"-"`` stands for nobody, and for an admin session across
    tenants. Of several sessions that are open in a thread or a task, it is the one that
    was used last. A record of ``sqlalchemy.engine`` gets the tenant whose statement it
    shows, and ``BEGIN``, which comes before the scope, gets ``"-"``. A record that has
    a ``tenant``, as by ``extra=``, keeps it.

    Who makes no filter pays nothing. From the first one on, listeners of all engines
    note with each statement whose it is.

    :param name: as of :class:`logging.Filter`.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        if _note not in watchers:
            watchers.append(_note)
            for each in ("before_cursor_execute", "commit", "rollback"):
                event.listen(Engine, each, _note_statement)

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "tenant"):
            record.tenant = _tenant_of(record)
        return bool(super().filter(record))


def _tenant_of(record: logging.LogRecord) -> str:
    if record.name.startswith("sqlalchemy.pool"):
        return NOBODY
    if record.name.startswith("sqlalchemy.engine"):
        found = _executing.get()
        if found is None or "BEGIN (implicit" in str(record.msg):
            return NOBODY
        return _text(found()) or NOBODY
    shown = (_text(each()) for each in reversed(_at_work.get()))
    return next((text for text in shown if text is not None), NOBODY)


def _text(claim: Claim | None) -> str | None:
    """Return the tenant of a claim that is at work, ``None`` for another one."""
    if claim is None or not claim.is_at_work:
        return None
    tenant = claim.scope.tenant
    return NOBODY if tenant is None else tenant_text(tenant)


def _note(claim: Claim) -> None:
    known = _at_work.get()
    if known and known[-1]() is claim:
        return
    others = (each for each in known if each() is not claim and _text(each()))
    _at_work.set((*others, ref(claim)))


def _note_statement(connection: Connection, *args: Any) -> None:
    claim = claim_at_work(connection)
    if claim is None:
        _executing.set(None)
    else:
        _executing.set(ref(claim))
        _note(claim)
