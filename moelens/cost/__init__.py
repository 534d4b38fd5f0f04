"""HOW FAST: counts of work that know no hardware."""
