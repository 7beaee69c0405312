"""A run's folder: what it holds, where a run may begin, and whether it may resume there."""
