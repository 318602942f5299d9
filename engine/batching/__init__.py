"""Batches on the device: scheduler, jobs, slots, buffers, graphs, the denoising step."""
