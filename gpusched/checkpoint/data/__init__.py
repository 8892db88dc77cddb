"""Where batches come from, and how each kind of source starts in the middle of an epoch with the same bits."""
