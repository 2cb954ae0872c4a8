"""Judging text without a model: is an answer in it, is it a refusal, does it hold personal data?"""
