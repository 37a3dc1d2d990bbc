"""What every folder stands on: one hierarchy of errors, checks of input, calls of what users write, files."""
