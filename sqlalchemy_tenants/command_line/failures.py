"""Errors as the command line reports them: one line, no traceback, no password, and an
exit status."""

from __future__ import annotations

import re
from typing import Any

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..exceptions import TenancyError

#: A check that found something, or a command that a tenant's state refuses.
REFUSED = 1
#: Usage, models, connection, database, files.
FAILED = 2
#: 128 and the number of SIGINT, as shells have it.
INTERRUPTED = 130

# The password of a URL, also where somebody gave the URL in the wrong place.
_PASSWORDS = re.compile(r"(?<=://)([^\s:/@]*):\S*@|\b(password=)[^\s&'\"]*")


class Failure(click.ClickException):
    """What the command line cannot do."""

    exit_code = FAILED


class Refusal(Failure):
    """What was found, or what the state of a tenant does not allow."""

    exit_code = REFUSED


class Interruption(Failure):
    """Somebody pressed Ctrl-C."""

    exit_code = INTERRUPTED


class Commands(click.Group):
    """The group of all commands: what they raise passes here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interruption("interrupted") from None
        except click.Abort as abort:
            if isinstance(abort.__context__, EOFError):
                raise Failure("there is nobody to answer; pass --yes") from None
            raise Interruption("interrupted") from None
        except click.ClickException as error:
            message = error.format_message()
            if (hidden := without_passwords(message)) == message:
                raise
            raise click.UsageError(hidden, getattr(error, "ctx", None)) from None
        except BrokenPipeError:
            raise  # click ends quietly, as behind "| head"
        except TenancyError as error:
            raise Refusal(without_passwords(str(error))) from None
        except (SQLAlchemyError, OSError, ValueError) as error:
            raise Failure(without_passwords(_message(error))) from None


def _message(error: Exception) -> str:
    # the statement and its parameters, which SQLAlchemy adds, may hold a tenant's rows
    if isinstance(error, DBAPIError):
        return f"the database refused: {error.orig}".rstrip()
    return str(error)


def without_passwords(text: str) -> str:
    """Return a message whose URLs have no password."""
    return _PASSWORDS.sub(
        lambda match: f"{match[1]}:***@" if match[2] is None else f"{match[2]}***", text
    )
