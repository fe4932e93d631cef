"""What both frameworks need, once."""
