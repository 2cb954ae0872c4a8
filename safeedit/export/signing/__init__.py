"""Who says so: a signature over an export, and claims about it that other tools read.

A manifest shows that an export is consistent; whoever changes the weights can write another. With
``apply --sign KEY`` two more files lie on top of it, and ``verify --key PUB`` checks them, offline
(``--sign sigstore`` and ``verify --sigstore-identity``: with a network, and without a key):

- ``model.sig``: OpenSSF Model Signing v1.0 over every file, made and read by the library
  ``model-signing`` of that standard
- ``claims.jsonl``: what was found, as in-toto Statements about the digest that ``model.sig`` signs,
  each in a DSSE envelope in a line of its own

Files that may be withheld from a copy (the originals, the deltas) are left out of what
``model.sig`` lists, so that it holds for such a copy too; their sha256 stand in the manifest, which
it signs.

- :mod:`~safeedit.export.signing.parties`: who signs, who is trusted: a key, or an identity
- :mod:`~safeedit.export.signing.keys`: EC P-256 keys: made, read, refused
- :mod:`~safeedit.export.signing.keyless`: identities that Sigstore vouches for
- :mod:`~safeedit.export.signing.envelopes`: DSSE envelopes, as JSON
- :mod:`~safeedit.export.signing.statements`: what is claimed, drawn from the record
- :mod:`~safeedit.export.signing.writing`: both files
- :mod:`~safeedit.export.signing.checking`: both files against a key and an export

The libraries are those of the extra ``attest``; they are imported where they are needed.
"""
