"""One verb for each kind of batch: encode, start, segment, judge."""
