"""Code shared by prepare.py, train.py and sample.py."""
import os
import sys

# OpenMP's threads spin only briefly before they sleep. By default, training on two cores that also
# run another program drops to less than a third of its speed.
os.environ.setdefault('GOMP_SPINCOUNT', '2000')             # read when torch is imported
if sys.version_info < (3, 11):  # noqa: UP036       # before any module that needs it
    version = sys.version.split()[0]
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + version + '\n')
    sys.exit(2)
