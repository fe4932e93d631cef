"""How well models go together, measured before or after they write."""
