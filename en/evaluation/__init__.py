"""What is measured of a network: metrics, scores from a checkpoint, ratios over a set."""
