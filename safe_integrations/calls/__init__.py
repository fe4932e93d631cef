"""Calls of tools as text: how models are told of them, and how their calls are read."""
