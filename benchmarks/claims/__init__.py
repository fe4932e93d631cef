"""A tiny experiment on what the README claims: models with different knowledge answer together.

    python -m benchmarks.claims

Word problems with the work written out; models of 0.4 million parameters, trained here in minutes,
each of which has never seen a fifth of the facts. It shows what the rules of an ensemble do to
answers, on models built to know different things. It shows nothing about real models.
"""
