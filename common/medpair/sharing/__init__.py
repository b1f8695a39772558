"""What goes out and what comes in: bundles as one file, cohorts in the formats of others."""
