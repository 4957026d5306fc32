"""What prepare, model, train and sample do without: one feature a file, imported by the knob
that asks for it."""
