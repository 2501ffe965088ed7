"""factory_boy: the page on testing, with the block that needs it."""

from __future__ import annotations

from pathlib import Path

from servers import Database
from test_testing_pages import NEEDED
from test_testing_pages import test_the_page as run_the_page


def test_factories_have_the_tenant_that_a_function_says(
    database: Database, tmp_path: Path
) -> None:
    assert NEEDED["test_factories.py"]
    run_the_page(database, tmp_path)
