"""What a run will be, before anything is loaded: shapes of models, and what autograd keeps of a pass through one."""
