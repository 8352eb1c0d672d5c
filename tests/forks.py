"""Processes that start at once: forked from one that has imported PyTorch and the
package, and has run nothing.
"""

import multiprocessing
import sys

# With what a first step of training imports, and the tests' own modules
PRELOADED = ["torch._dynamo", "posttrain.pretrain", "posttrain.lab.evidence", "pytest"]


def context():
    """Where no process can be forked, as on Windows, each starts from nothing."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found
