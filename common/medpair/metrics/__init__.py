"""Overlap, distance, and summaries of them."""
