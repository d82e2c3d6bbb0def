"""One copy of the packed weights for all processes of a machine (docs/processes.md)."""
