"""Code shared by prepare.py, train.py and sample.py."""
import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036       # before any module that needs it
    version = sys.version.split()[0]
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + version + '\n')
    sys.exit(2)
# A stream is None if the shell closed it, e.g. with `2>&-`.
sys.stdin = sys.stdin or open(os.devnull, encoding='utf-8')
sys.stdout = sys.stdout or open(os.devnull, 'w', encoding='utf-8')
sys.stderr = sys.stderr or open(os.devnull, 'w', encoding='utf-8')
