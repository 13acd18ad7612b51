"""The whole river: stages one after another, each leaving a manifest, from people's votes to an audited policy.

Imports none of them: its settings are read, and what is wrong with them said, before a library of models is waited for.
"""
