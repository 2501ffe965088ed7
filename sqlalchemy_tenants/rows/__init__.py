"""Rows of one tenant: export, import, delete and rename.

The methods of the manager are the way in; this is loaded by who calls them::

    manager.export_rows("acme", "acme.rows")
    manager.import_rows("acme", "acme.rows", as_tenant="acme-copy")
    manager.delete_rows("acme", dry_run=True)
    read_file("acme.rows").tables
"""

from __future__ import annotations

from .archive import FileTable, RowsFile, read_file
from .results import RowCounts, RowsError, RowsProgress

__all__ = [
    "FileTable",
    "RowCounts",
    "RowsError",
    "RowsFile",
    "RowsProgress",
    "read_file",
]
