"""The eight task families: draws of questions (`draw`), their meaning (`query`), wording (`phrase`) and gold path (`plan`)."""
