"""Diffusion without networks or volumes: schedules, objectives, solvers."""
