"""Grammars that no model can leave."""
