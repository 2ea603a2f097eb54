"""Items of a data set as a model reads them: texts in parts, chat templates, tokens and which of them are learned."""
