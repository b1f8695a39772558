"""MedPair: paired synthetic volumes (image and label on one grid) from a small labelled cohort."""

__version__ = "0.3.0"
