"""`python -m safe_integrations.cli`."""

from safe_integrations.cli import main

main()
