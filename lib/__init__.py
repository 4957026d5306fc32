"""What the four scripts share."""
import sys

if sys.version_info < (3, 11):  # noqa: UP036       # checked here because later files need it
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + sys.version[:4] + '\n')
    sys.exit(2)
