"""Opening: context managers that open a session or a connection of one tenant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from sqlalchemy import Connection, event

from .claims import claim_transaction
from .refusals import refuse
from .scope import Scope, enter_scope, two_phase_error
from .session import ScopedSession
from .statements import guard_statements

if TYPE_CHECKING:
    from .managers import PostgresManager

_S = TypeVar("_S", bound=ScopedSession)


class _Block:
    """What says how to use it where it is used without ``with``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r}: this opens a session or a connection; it is not one itself; "
            f"write: with manager.new_session(...) as session, likewise "
            f"admin_session(), connect() and begin()"
        )

    async def __aenter__(self) -> NoReturn:
        raise TypeError(
            "this manager is not async; write 'with' instead of 'async with', or take "
            "the manager from sqlalchemy_tenants.aio.managers, with an AsyncEngine"
        )

    async def __aexit__(self, *exc_info: object) -> None: ...


class Connecting(_Block, AbstractContextManager[Connection]):
    """Opens a connection on entering, and closes it."""

    def __init__(self, block: AbstractContextManager[Connection]) -> None:
        self._block = block

    def __enter__(self) -> Connection:
        return self._block.__enter__()

    def __exit__(self, *exc_info: Any) -> bool | None:
        return self._block.__exit__(*exc_info)


class Opening(_Block, AbstractContextManager[_S], Generic[_S]):
    """Opens a session on entering, begins its first transaction, and closes it.

    A class, because a generator would take longer, and every session comes by here.
    """

    __slots__ = ("_create_if_missing", "_manager", "_open", "_session")

    def __init__(
        self,
        manager: PostgresManager,
        open_: Callable[[], _S],
        create_if_missing: bool = False,
    ) -> None:
        self._manager = manager
        self._open = open_
        self._create_if_missing = create_if_missing
        self._session: _S | None = None

    def __enter__(self) -> _S:
        if self._session is not None:
            raise RuntimeError("this session is open; ask the manager for another one")
        session = self._open()
        try:
            self._manager.start_session(
                session, create_if_missing=self._create_if_missing
            )
        except BaseException:
            session.close()
            raise
        self._session = session
        return session

    def __exit__(self, *exc_info: object) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        session.close()


def confine(
    connection: Connection, scope: Scope, words: frozenset[str] | None = None
) -> None:
    """Enter ``scope`` at each BEGIN of ``connection``, from now on, and let statements
    begin with ``words`` only.

    An error closes the connection: SQLAlchemy would execute its next statement without
    coming here again.
    """

    @event.listens_for(connection, "begin")
    def begin(connection: Connection) -> None:
        try:
            claim_transaction(connection, scope, None)
            enter_scope(connection, scope)
            if words is not None:
                guard_statements(connection, words)
        except BaseException as error:
            refusal = refuse(error, connection, scope)
            connection.close()
            if refusal is error:
                raise
            raise refusal from error

    @event.listens_for(connection, "begin_twophase")
    def begin_twophase(connection: Connection, xid: Any) -> None:
        raise two_phase_error(scope)
