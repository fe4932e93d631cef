"""The command line: `generate`, `compare`, `doctor`, `bench`. Importing it loads no model."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `safe-integrations` script."""
    try:
        from safe_integrations.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f"error: {error.name} is missing: pip install 'safe-integrations[cli]'")
    app()
