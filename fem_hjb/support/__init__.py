"""What every folder stands on: one hierarchy of errors, checks of input, files written whole or not at all."""
