"""Image metrics: fidelity, embedded distances, statistics and sanity checks."""
