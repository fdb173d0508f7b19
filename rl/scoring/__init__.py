"""Groups of completions to scored groups, alone or while the sampler decodes others."""
