"""Batches on the device: scheduler, jobs, slots, buffers, graphs, arenas, the denoising step."""
