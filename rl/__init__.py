"""otherhalf's core: questions in, a better LoRA policy out. Importing this package loads no torch."""

import logging

# Where it is installed, PEFT imports it, and it tells on each import of a kernel of others that it would compute with:
# none of its kernels computes here (rl/policy/nf4.py).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
