"""Judgements in and out of files: karat's own forms, and those of other tools."""
