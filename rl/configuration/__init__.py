"""From files and `key=value` to a checked configuration, and what the commands say of one."""
