"""The heap: what a program frees stays its own."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from haiku_mqa._heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**25)  # 256 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
print(kept, faults(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what glibc does with its heap")
def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    kept, first, second = done.stdout.split()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(second) < int(first) / 10
