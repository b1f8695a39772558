"""What leaves the house and what comes in: bundles as one file, cohorts in the formats of others."""
