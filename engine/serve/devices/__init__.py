"""Several devices of one machine behind one address: an engine in a process of its own on each."""
