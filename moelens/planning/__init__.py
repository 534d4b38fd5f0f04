"""HOW FAST: which configuration to run."""
