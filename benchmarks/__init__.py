"""What the ensemble costs, beside its drafter alone. Part of the repository, not of the package."""
