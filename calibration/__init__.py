"""INT8: which samples, which ranges, which layers."""
