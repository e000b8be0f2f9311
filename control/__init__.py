"""dwrapctl: the embedded farm, and everything a person asks a distributor."""
