"""Opening: async context managers that open a session or a connection of one tenant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NoReturn, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from .. import managers as sync

_S = TypeVar("_S", bound=AsyncSession)


class _Block:
    """What says how to use it where it is used without ``async with``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r}: this opens a session or a connection; it is not one itself; "
            f"write: async with manager.new_session(...) as session, likewise "
            f"admin_session(), connect() and begin()"
        )

    def __await__(self) -> NoReturn:
        raise TypeError(
            "this cannot be awaited; write: async with manager.new_session(...) as "
            "session"
        )

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "this manager is async; write 'async with' instead of 'with', or take the "
            "manager from sqlalchemy_tenants.managers, with an Engine"
        )

    def __exit__(self, *exc_info: object) -> None: ...


class Connecting(_Block, AbstractAsyncContextManager[AsyncConnection]):
    """Opens a connection on entering, and closes it."""

    def __init__(self, block: AbstractAsyncContextManager[AsyncConnection]) -> None:
        self._block = block

    async def __aenter__(self) -> AsyncConnection:
        return await self._block.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._block.__aexit__(*exc_info)


class Opening(_Block, AbstractAsyncContextManager[_S], Generic[_S]):
    """Opens a session on entering, begins its first transaction, and closes it.

    A class, because a generator would take longer, and every session comes by here.
    """

    __slots__ = ("_create_if_missing", "_manager", "_open", "_session")

    def __init__(
        self,
        manager: sync.PostgresManager,
        open_: Callable[[], _S],
        create_if_missing: bool = False,
    ) -> None:
        self._manager = manager
        self._open = open_
        self._create_if_missing = create_if_missing
        self._session: _S | None = None

    async def __aenter__(self) -> _S:
        if self._session is not None:
            raise RuntimeError("this session is open; ask the manager for another one")
        session = self._open()
        try:
            await session.run_sync(
                self._manager.start_session,  # type: ignore[arg-type]
                create_if_missing=self._create_if_missing,
            )
        except BaseException as error:
            await session.__aexit__(type(error), error, error.__traceback__)
            raise
        self._session = session
        return session

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        await session.__aexit__(*exc_info)
