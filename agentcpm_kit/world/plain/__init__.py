"""The plain edition of the atlas, for readers of 1M parameters: one form of sentence, names of one token."""
