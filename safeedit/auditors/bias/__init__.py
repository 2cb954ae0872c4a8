"""Stereotype and factual gender: does a model take a profession for a gender, and does it still
know one that a word or a text states?

Sentences are read as plain text, whatever the model's template, unless the data says chat: a
sentence to be continued is no question. Intervals count professions (or other subjects), since
sentences about one profession are not independent.
"""
