"""``python -m gpt2c`` runs the command ``gpt2c``."""

import sys

from gpt2c.cli.main import main

sys.exit(main())
