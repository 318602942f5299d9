"""One verb for each kind of batch: encode, start, segment, place, judge."""
