"""`python -m launch VERB` is the same program as `cnn-depth VERB`."""

import sys

from launch.cli import entry

sys.exit(entry())
