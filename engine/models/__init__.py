"""A checkpoint's files as components: layouts, networks, attention, tensors, segmenters."""
