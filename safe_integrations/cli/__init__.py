"""The command line: `generate`, `compare`, `doctor`, `bench`. Importing it loads no model."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `safe-integrations` script."""
    from safe_integrations.cli.app import app

    app()
