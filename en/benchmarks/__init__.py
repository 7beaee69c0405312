"""Where timings in docs/measurements.md come from: ratios against named alternatives, interleaved in one run."""
