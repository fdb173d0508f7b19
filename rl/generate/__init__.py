"""Back ends that sample completions; the protocol is in rl/generate/protocol.py."""
