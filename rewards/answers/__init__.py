"""Reading answers, and telling whether two are equal, without evaluating what a model wrote."""
