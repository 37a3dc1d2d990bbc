"""Steps in time on abstract operators: one file for each method."""
