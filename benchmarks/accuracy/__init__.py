"""How often the answers of an ensemble are right, under both units of judging."""
