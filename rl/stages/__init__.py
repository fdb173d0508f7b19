"""A pipeline of stages, each one of the commands that users run alone (`python -m rl.pipeline`)."""
