"""One thread for numpy, scikit-learn and what tests start: import this before them.

Parallel test workers share the cores. Threads of linear algebra that wait for each other on a busy core take several
times as long as one thread.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
