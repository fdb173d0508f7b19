"""The model that trains: loading, forward pass, log-probabilities, merging, digests."""
