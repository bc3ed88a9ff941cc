"""The parts of loadgen, one at a time."""
