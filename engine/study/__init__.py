"""What runs an engine to learn something of a model: assessment, populations, reports."""
