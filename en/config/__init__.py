"""Every key of a run: YAML, its base and overrides made into a checked configuration."""
