"""Question files to questions and prompts, and the order in which they are drawn."""
