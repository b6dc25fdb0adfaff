"""What runs the notebooks and tells their results; the science below knows nothing of it."""
