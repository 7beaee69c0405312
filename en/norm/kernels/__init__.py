"""How the normalizers are fast."""
