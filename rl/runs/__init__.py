"""What a run leaves in its folder and shows of itself, and when it counts as collapsed."""
