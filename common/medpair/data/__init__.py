"""Labelled volumes: the data contract, files, labels, patches, simulated cohorts."""
