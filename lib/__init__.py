"""Code shared by prepare.py, train.py and sample.py."""
import sys

if sys.version_info < (3, 11):  # noqa: UP036       # before any module that needs it
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + sys.version[:4] + '\n')
    sys.exit(2)
