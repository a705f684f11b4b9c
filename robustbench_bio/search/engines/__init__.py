"""Search engines, one file each: add a frozen dataclass under `@ENGINES.register`, with the paper's defaults."""
