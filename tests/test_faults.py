"""Short versions of the faults in faults.py; each runs in a process of its own, as it forks."""
import subprocess
import sys

import pytest
from conftest import ROOT

SHORT = ['kill --n=1 --steps=10', 'signals --n=6', 'impatience --n=1', 'disk --n=4',
         'values --n=12', 'distributed --n=1 --world_size=2']
SLOW = ['memory --n=1', 'distributed --n=2', 'long --n=60', 'values --n=200', 'kill --n=10']


@pytest.mark.skipif(sys.platform != 'linux', reason='faults.py forks, and limits memory and files')
@pytest.mark.parametrize('fault', SHORT + [pytest.param(fault, marks=pytest.mark.slow)
                                           for fault in SLOW])
def test_fault(fault):
    command = [sys.executable, str(ROOT / 'tests/faults.py'), *fault.split()]
    p = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr[-3000:]
    print(p.stdout)
