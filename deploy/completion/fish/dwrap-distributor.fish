# fish completion of dwrap-distributor: dwrapctl's does it.
source (status dirname)/dwrapctl.fish
