"""The ledger: which erasure requests an export covers, kept beside it under keyed digests.

Requests arrive over months and every policy starts from the last export. Each export carries
``evidence/ledger.jsonl``: one row for each erased item, older rows first. The next policy
matches the requester's file to those rows, audits the items again and fails if one is told.

- :mod:`~safeedit.ledger.keys`: the key, and the digests made with it
- :mod:`~safeedit.ledger.book`: the file: reading, checking and writing it
- :mod:`~safeedit.ledger.requests`: the requester's file, matched to the rows
- :mod:`~safeedit.ledger.upkeep`: what one run does with the ledger
- :mod:`~safeedit.ledger.commands`: ``safeedit ledger show | check | key``

What it can't do: a ledger shows what was erased and that it has not come back under the
audit named in the policy. It holds no text, so without the requester's file nothing can be
audited again; and whoever has the key *and* a guess can confirm the guess.
"""
