"""What the README's timings come from: ratios against named alternatives, measured interleaved in one run."""
