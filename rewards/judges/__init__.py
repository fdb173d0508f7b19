"""Judges of free-form answers: verifier models, embeddings, and clusters by their verdicts."""
