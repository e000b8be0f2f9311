# fish completion of dwrap-agent: dwrapctl's does it.
source (status dirname)/dwrapctl.fish
