"""The ledger: which erasure requests an export covers, kept beside it under keyed digests.

Requests arrive over months and every policy starts from the last export. Each export carries
``evidence/ledger.jsonl``: one row for each erased item, older rows first. The next policy
matches the requester's file to those rows, audits the items again and fails if one is told.

- :mod:`~safeedit.export.ledger.keys`: the key, and the digests made with it
- :mod:`~safeedit.export.ledger.file`: the file: reading, checking and writing it
- :mod:`~safeedit.export.ledger.requests`: the requester's file, matched to the rows
- :mod:`~safeedit.export.ledger.update`: what one run does with the ledger
- :mod:`~safeedit.cli.ledger`: ``safeedit ledger show | check | key``

What it can't do: a ledger shows what was erased and that it has not come back under the
audit named in the policy. It holds no text, so without the requester's file nothing can be
audited again; and whoever has the key *and* a guess can confirm the guess.
"""
