"""Models that llama.cpp computes in this process."""
