"""Pure decisions: no clock, no loop, no machine."""
