"""The plain PyTorch reference that every claim is measured against."""
