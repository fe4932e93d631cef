"""Models that servers compute: vLLM, llama-server, SGLang."""
