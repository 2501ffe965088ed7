"""A web application with FastAPI: each request sees the rows of its tenant.

The tenant comes from a token whose signature is verified. Run it with::

    uvicorn main:app

Environment: DATABASE_URL of the login that serves requests, ADMIN_DATABASE_URL of the
one that creates tenants, TOKEN_KEY to verify tokens with.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import jwt
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Response, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from models import Base, Order
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_tenants import TenantNotFound
from sqlalchemy_tenants.aio import AsyncTenantSession, PostgresManager

engine = create_async_engine(os.environ["DATABASE_URL"])
admin_engine = create_async_engine(os.environ["ADMIN_DATABASE_URL"])
manager = PostgresManager.from_engine(
    engine,
    schema="public",
    admin_engine=admin_engine,
    metadata=Base.metadata,
    # or a late request would create a tenant again that was deleted, and see its rows
    create_if_missing=False,
    # as asyncio wants it: attributes can be read after a commit
    session_options={"expire_on_commit": False},
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # better not to start than to serve without isolation
    await manager.check(strict=True)
    yield
    await engine.dispose()
    await admin_engine.dispose()


app = FastAPI(lifespan=lifespan)


def current_tenant(
    credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())],
) -> str:
    """Return the tenant of a valid token; anybody can write one that is not."""
    try:
        claims = jwt.decode(
            credentials.credentials,
            os.environ["TOKEN_KEY"],
            algorithms=["HS256"],
            audience="shop",
            options={"require": ["exp", "aud", "tenant"]},
        )
    except jwt.InvalidTokenError:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "invalid token") from None
    return str(claims["tenant"])


Tenant = Annotated[str, Depends(current_tenant)]


async def tenant_session(tenant: Tenant) -> AsyncIterator[AsyncTenantSession]:
    """Yield a session of the request's tenant, who has to exist: a token does not
    create one."""
    try:
        async with manager.new_session(tenant) as session:
            yield session
    except TenantNotFound:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "unknown tenant") from None


Session = Annotated[AsyncTenantSession, Depends(tenant_session)]


class NewOrder(BaseModel):
    item: str
    country: str


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def create_order(
    new: NewOrder, session: Session, tenant: Tenant, background: BackgroundTasks
) -> dict[str, Any]:
    order = Order(item=new.item, country=new.country)
    session.add(order)
    await session.commit()
    background.add_task(confirm, tenant, order.id)
    return {"id": order.id, "tenant": order.tenant}


@app.get("/orders")
async def list_orders(session: Session) -> list[dict[str, Any]]:
    orders = await session.scalars(select(Order).order_by(Order.id))
    return [{"item": order.item, "confirmed": order.confirmed} for order in orders]


async def confirm(tenant: str, order_id: int) -> None:
    """Confirm an order after the response, in a session of its own: that of the
    request is closed by then."""
    async with manager.new_session(tenant) as session:
        order = await session.get_one(Order, order_id)
        order.confirmed = True
        await session.commit()


@app.get("/health")
async def health(response: Response) -> list[str]:
    """Report what makes the isolation void."""
    findings = await manager.check()
    if any(finding.severity == "error" for finding in findings):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return [str(finding) for finding in findings]
