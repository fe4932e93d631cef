"""What the ensemble costs: the same answers written by it and by its drafter alone, and timed."""
