"""The paper: draft, verify, ensemble. Knows bytes, tokens and probabilities; numpy only."""
