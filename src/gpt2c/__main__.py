"""``python -m gpt2c`` is the command ``gpt2c``."""

import sys

from gpt2c.cli import main

sys.exit(main())
