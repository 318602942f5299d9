"""HTTP: the OpenAI images API over an engine, for many clients at once."""
