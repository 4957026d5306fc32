"""Code shared by prepare.py, train.py and sample.py."""
import sys

if sys.version_info < (3, 11):  # noqa: UP036       # before any module that needs it
    version = sys.version.split()[0]
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + version + '\n')
    sys.exit(2)
