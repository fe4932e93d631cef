"""How models get in: loading, tokenizers as bytes, prompts, and the session that computes."""
