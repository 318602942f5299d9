"""Batches on the device: scheduler and pace, jobs, slots, buffers, graphs, arenas, the denoising step."""
