"""The FastAPI example, served by uvicorn and asked by two tenants at once."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from servers import Database, free_port

EXAMPLE = Path(__file__).parent.parent / "examples" / "fastapi"
KEY = "a key of at least thirty-two bytes, for HS256"
TENANTS = ["acme", "globex"]


def environment(database: Database, login: str, driver: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database.url(login, driver),
        "ADMIN_DATABASE_URL": database.url("manager", driver),
        "TOKEN_KEY": KEY,
    }


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with the example's tables and two tenants."""
    subprocess.run(
        [Path(sys.executable).parent / "alembic", "upgrade", "head"],
        cwd=EXAMPLE,
        env=environment(database, "owner", "asyncpg"),
        check=True,
    )
    without_inheriting = "WITH INHERIT FALSE" if database.server.version >= 16 else ""
    for tenant in TENANTS:
        database.execute(f"CREATE ROLE tenant_{tenant} IN ROLE tenants")
        database.execute(f"GRANT tenant_{tenant} TO app {without_inheriting}")
    database.execute("INSERT INTO reference.countries VALUES ('NL'), ('JP')")
    return database


@pytest.fixture
def url(shop: Database) -> Iterator[str]:
    """The application's URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)],
        cwd=EXAMPLE,
        env=environment(shop, "app", "asyncpg"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(process.communicate()[0].decode())
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def token(tenant: str | None, key: str = KEY, **claims: Any) -> dict[str, str]:
    expiry = datetime.now(UTC) + timedelta(minutes=5)
    claims = {"exp": expiry, "aud": "shop", "tenant": tenant, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return {"Authorization": f"Bearer {jwt.encode(claims, key, 'HS256')}"}


async def test_two_tenants_in_parallel(url: str) -> None:
    async def order_and_list(client: httpx.AsyncClient, tenant: str) -> Any:
        for number in range(10):
            answer = await client.post(
                "/orders",
                headers=token(tenant),
                json={"item": f"{tenant} {number}", "country": "NL"},
            )
            assert answer.status_code == 201
            assert answer.json()["tenant"] == tenant
        return (await client.get("/orders", headers=token(tenant))).json()

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        results = await asyncio.gather(
            *(order_and_list(client, tenant) for tenant in TENANTS)
        )
        for tenant, orders in zip(TENANTS, results, strict=True):
            items = [order["item"] for order in orders]
            assert items == [f"{tenant} {number}" for number in range(10)]
            # the background task of each request but perhaps the last has run
            assert sum(order["confirmed"] for order in orders) >= 9


def test_requests_without_a_valid_token_are_refused(url: str) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    other_key = "another key of at least thirty-two bytes"
    unsigned = jwt.encode({"aud": "shop", "tenant": "acme"}, "", "none")
    for headers in (
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Bearer {unsigned}"},
        token("acme", key=other_key),
        token("acme", exp=past),
        token("acme", aud="another"),
        token(None),
    ):
        assert httpx.get(f"{url}/orders", headers=headers).status_code == 401


def test_a_token_does_not_create_a_tenant(url: str, shop: Database) -> None:
    answer = httpx.get(f"{url}/orders", headers=token("initech"))
    assert answer.status_code == 403
    assert not shop.rows("SELECT FROM pg_roles WHERE rolname = 'tenant_initech'")


def test_health(url: str, shop: Database) -> None:
    answer = httpx.get(f"{url}/health")
    assert (answer.status_code, answer.json()) == (200, [])
    shop.execute("ALTER TABLE orders DISABLE ROW LEVEL SECURITY")
    answer = httpx.get(f"{url}/health")
    assert answer.status_code == 503
    assert "public.orders" in answer.json()[0]


def test_the_nightly_job(shop: Database) -> None:
    shop.execute(
        "INSERT INTO orders (tenant, item, country, confirmed)"
        " VALUES ('acme', 'anvil', 'JP', true)"
    )
    result = subprocess.run(
        [sys.executable, "nightly.py"],
        cwd=EXAMPLE,
        env=environment(shop, "app", "psycopg"),
        capture_output=True,
        text=True,
    )
    assert result.stdout == "acme: 1 orders\nglobex: 0 orders\n"
    assert result.returncode == 0, result.stderr
