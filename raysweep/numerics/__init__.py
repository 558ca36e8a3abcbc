"""Pure functions of arrays: similarity, dynamics, correlation, resampling. No config, no I/O, no logging."""
