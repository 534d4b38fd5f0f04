"""HOW: a step as a list of tasks, and what runs it."""
