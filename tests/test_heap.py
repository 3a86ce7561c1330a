"""The heap: what a program frees stays its own."""

import platform
import subprocess
import sys

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


def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    kept, first, second = done.stdout.split()
    assert kept == str(platform.libc_ver()[0] == "glibc")
    assert kept == "False" or int(second) < int(first) / 10
