"""The encyclopedia: the edition of the atlas whose pages read like pages, in English or in Chinese.

schema (what can be said) -> names -> facts (what is true) -> voice (how a language says it) -> pages.
"""
