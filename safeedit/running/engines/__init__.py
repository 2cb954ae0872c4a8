"""Other processes and machines that make evaluations while the run waits for them.

An evaluation is an audit of a change of the base, and the same wherever it is made: its key in the
store is made of weights, data, code, kernels and threads. So an engine decides nothing. Before a
stage begins, what it will ask for and the store does not hold is given to workers; what they find
goes into the store under the key that *they* computed, and the run reads it there. A worker that
is lost, fails, or computes under another key costs time and never a figure: the run makes itself
what it does not find.

- :mod:`~safeedit.running.engines.worker`: opens the base once, is told changes, returns entries
- :mod:`~safeedit.running.engines.pool`: shares evaluations out, and repeats those of lost workers
- :mod:`~safeedit.running.engines.local`: processes of this machine, one for each GPU
- :mod:`~safeedit.running.engines.cluster`: actors of a Ray cluster
- :mod:`~safeedit.running.engines.ahead`: what a run asks of them, and where that goes

Workers are sent the plan with its data, and the digest key: whoever can read a cluster's memory
can read those.
"""
