"""A checkpoint's files as components: layouts, networks, attention, adapters, tensors, segmenters."""
