"""The kinds of measurement: explicit inputs, a table out. Usable from a notebook without a config or a run folder."""
