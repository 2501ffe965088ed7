"""Alembic projects that use another library for migrations, too."""

from __future__ import annotations

from projects import Project, Result


class ForeignProject(Project):
    """A project whose models may import such a library.

    Each command is a process of its own once its models import that library: what it
    registers with Alembic would stay for the other tests of this process.
    """

    is_foreign = False

    def run(self, *arguments: str) -> Result:
        return self.spawn(*arguments) if self.is_foreign else super().run(*arguments)

    def write_models(self, models: str) -> None:
        super().write_models(models)
        self.is_foreign = "import" in models

    def refusal(self, *arguments: str) -> str:
        """Return why ``alembic check``, or another command, refuses to go on."""
        result = self.run(*arguments or ["check"])
        _, failed, message = result.output.rpartition("FAILED: ")
        assert failed, result.output
        assert not message.startswith("New upgrade operations"), result.output
        return message
