"""Packing bundles; other tools' folders."""
