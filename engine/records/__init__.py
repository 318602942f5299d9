"""What is kept of a picture: manifest, audit log, pictures, explanations."""
