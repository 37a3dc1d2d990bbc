"""Steps in time on abstract operators: one loop, and one file for each method."""
