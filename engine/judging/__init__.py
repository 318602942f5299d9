"""What a picture is too close to: gate, measures, alignment, registered works, verdict."""
