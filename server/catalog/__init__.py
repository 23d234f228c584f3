"""The live catalog: what the folder holds, what the workers hold, and what each name means because of it."""
