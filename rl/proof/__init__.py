"""The proof, as a run goes, that the sampler has the policy."""
