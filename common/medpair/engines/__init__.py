"""Training loops, what they save, and the scoring of segmenters."""
