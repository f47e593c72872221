"""The HTTP interface, in the form that OpenAI's clients speak."""
